"""Tests of train/command_line/."""
