"""Tests of train/memory/."""
