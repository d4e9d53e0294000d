"""Who writes in a run folder: its lock, its own checkpoints, and the name `latest`."""
