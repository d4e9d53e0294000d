"""Scoring: the loss of endings after a context, in batches, on any number of ranks."""
