"""Tests of bench/gpu/."""
