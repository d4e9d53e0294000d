"""Tests of train/preflight/."""
