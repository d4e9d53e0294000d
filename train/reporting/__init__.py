"""What a person sees of a run: closing table, loss curve, black box of a bad step."""
