"""Tests of storage/records/."""
