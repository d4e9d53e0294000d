"""Tests of eval/harness/."""
