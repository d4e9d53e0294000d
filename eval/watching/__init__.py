"""Evaluation of each new checkpoint of a training run, recorded in evals.jsonl."""
