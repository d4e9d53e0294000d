"""Metrics and samples to Weights & Biases; WANDB_MODE=offline: to the run folder only."""

from pathlib import Path
from typing import Any

from storage.writers.tracker_writer import TrackerWriter


class WandbWriter(TrackerWriter):
    """One wandb run for a run of ours, also over several starts."""

    name = "wandb"

    def __init__(self, run: Path, run_id: str) -> None:
        self._arguments = {"id": run_id, "name": run.name, "dir": run, "project": "ratchet"}

    def begin(self, record: dict[str, Any] | None) -> None:
        """Begin the run, or continue it. A run never waits for somebody to log in."""
        import wandb  # type: ignore[reportMissingImports]

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise ValueError("not logged in: run wandb login, or set WANDB_MODE=offline")
        self._table, quiet = wandb.Table, wandb.Settings(console="off")
        self._run = wandb.init(resume="allow", settings=quiet, **self._arguments)
        self._run.config.update(record or {}, allow_val_change=True)

    def samples(self, samples: list[tuple[str, str]]) -> Any:
        """A table."""
        return self._table(["prompt", "text"], samples)
