"""Tests of train/optimizers/."""
