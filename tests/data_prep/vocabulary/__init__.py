"""Tests of data_prep/vocabulary/."""
