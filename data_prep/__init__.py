"""Makes data sets of token shards from text, and defines the order of training.

Layer 1: may import storage.
"""
