"""Proof that a run whose processes are killed ends like an undisturbed run."""
