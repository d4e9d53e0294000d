"""Losses of endings after a context, in batches that do not depend on the number of ranks."""
