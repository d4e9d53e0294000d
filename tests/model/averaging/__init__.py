"""Tests of model/averaging/."""
