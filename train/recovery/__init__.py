"""How a run ends and starts again: exit codes, emergency checkpoint, restart count."""
