"""The command line of a run: presets, flags, and what follows from data or checkpoint."""
