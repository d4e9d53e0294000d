"""Which tokens each training step reads: a pure function of the data set, the seed and a position.

ARCHITECTURE.md, "The order of training", defines it completely.
"""
