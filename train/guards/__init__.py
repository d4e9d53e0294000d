"""Checks during training: loss spikes, equal replicas, slow ranks, windows of a bad step."""
