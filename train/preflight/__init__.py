"""Checks before the first step: inputs, a dry run, and the machine."""
