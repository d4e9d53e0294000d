"""A run: configuration, the training step, the loop, and everything that lets a run continue.

Floor 3: may import eval, data_prep, model, parallel and storage.
"""
