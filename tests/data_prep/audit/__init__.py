"""Tests of data_prep/audit/: what a run was trained on."""
