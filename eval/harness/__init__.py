"""The model `ratchet` of lm-evaluation-harness: its answers, settings and what it leaves out."""
