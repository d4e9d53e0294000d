"""The model `ratchet` of lm-evaluation-harness: answers, settings, what it leaves out."""
