"""Tests of data_prep/preparation/cloud/: sources named by URL."""
