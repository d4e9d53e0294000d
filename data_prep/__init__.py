"""Makes data sets of token shards from text, and defines the order in which training reads them.

Layer 1: may import storage.
"""
