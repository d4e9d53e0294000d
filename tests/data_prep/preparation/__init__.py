"""Tests of data_prep/preparation/: from documents to shards."""
