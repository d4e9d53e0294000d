"""Tests of model/documents/: attention within documents."""
