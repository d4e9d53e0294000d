"""Tests of data_prep/dataset/: a data set on disk."""
