"""Checkpoints of a run: contents, copy, writing, disk space, and changes allowed on a resume."""
