"""Tests of data_prep/planning/: sizes from a sample, and units."""
