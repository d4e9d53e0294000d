"""Tests of a run beside sound runs of the same recipe."""
