"""Which tokens each training step reads: a function of data set, seed and position.

ARCHITECTURE.md, "The order of training", defines it completely.
"""
