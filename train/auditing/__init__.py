"""An audit of a run by its folder: its chain of digests, and segments that are repeated."""
