"""Memory of a run: the micro-batch that fits, and predicted beside measured use."""
