"""Tests of storage/writers/."""
