"""Tests of train/experiments/sweeps/."""
