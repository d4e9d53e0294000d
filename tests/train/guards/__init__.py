"""Tests of train/guards/."""
