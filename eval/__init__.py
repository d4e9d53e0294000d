"""Evaluation: tasks that take a plain model and return numbers, and text generation.

Layer 2: may import data_prep, model, parallel and storage. Knows nothing of the trainer.
"""
