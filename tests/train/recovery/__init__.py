"""Tests of train/recovery/."""
