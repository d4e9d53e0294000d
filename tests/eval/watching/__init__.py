"""Tests of eval/watching/."""
