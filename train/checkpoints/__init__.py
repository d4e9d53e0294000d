"""Checkpoints of a run: contents, host copy, background writing, disk space, and what a resume may
change."""
