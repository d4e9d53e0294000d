"""Tests of storage/terminal/."""
