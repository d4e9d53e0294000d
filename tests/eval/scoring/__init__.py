"""Tests of eval/scoring/."""
