"""Tests of data_prep/sources/: files and other sources of documents."""
