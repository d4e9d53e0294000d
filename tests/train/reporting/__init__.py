"""Tests of train/reporting/."""
