"""Tests of storage/options/."""
