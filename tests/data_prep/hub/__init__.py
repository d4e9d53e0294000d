"""Tests of data_prep/hub/: the Hugging Face Hub."""
