"""Tests of train/checkpoints/."""
