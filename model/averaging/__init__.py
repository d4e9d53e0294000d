"""Averages of checkpoints: which may be averaged, and the checkpoint they become."""
