"""Evaluation beside a training run: each new checkpoint once, results in evals.jsonl."""
