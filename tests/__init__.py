"""Tests; they may import everything."""
