"""Tests of storage/ownership/."""
