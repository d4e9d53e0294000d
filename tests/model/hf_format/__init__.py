"""Tests of model/hf_format."""
