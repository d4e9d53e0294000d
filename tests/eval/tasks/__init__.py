"""Tests of eval/tasks/."""
