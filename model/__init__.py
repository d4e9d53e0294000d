"""The network, its loss, its cost, and a model on disk (config and weights).

Floor 1: may import storage.
"""
