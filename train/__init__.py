"""Training runs: configuration, the step, the loop, and what lets a run continue.

May import eval, data_prep, model, parallel and storage.
"""
