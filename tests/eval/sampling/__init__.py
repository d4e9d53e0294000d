"""Tests of eval/sampling/."""
