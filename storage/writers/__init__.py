"""Where metrics go besides `metrics.jsonl`: console, TensorBoard's pages, other trackers.

Imports only storage.
"""
