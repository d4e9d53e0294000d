"""Tests of storage/vocabularies/."""
