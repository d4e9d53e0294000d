"""Tests of model/estimates."""
