"""Checkpoints of a run: contents, writing, disk space, and what a resume may change."""
