"""What a model is worth: tasks that take a plain model and return numbers, and sampling.

Floor 2: may import data_prep, model, parallel and storage. Knows no trainer.
"""
