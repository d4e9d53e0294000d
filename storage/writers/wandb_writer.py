"""Metrics and samples to Weights & Biases; WANDB_MODE=offline: to the run folder only."""

from pathlib import Path
from typing import Any

from storage.metrics import Metrics, MetricWriter
from storage.writers.board_pages import curves


class WandbWriter(MetricWriter):
    """One wandb run for a run of ours, also over several starts. Imported with the first line."""

    name = "wandb"

    def __init__(self, run: Path, run_id: str) -> None:
        self._arguments = {"id": run_id, "name": run.name, "dir": run, "project": "ratchet"}
        self._run: Any = None

    def write(self, step: int, metrics: Metrics) -> None:
        """Send the values that are curves, under the tags of TensorBoard."""
        self.write_settings(step)
        self._run.log(curves(metrics), step=step)

    def write_samples(self, step: int, samples: list[tuple[str, str]]) -> None:
        """Send the samples as a table."""
        self.write_settings(step)
        self._run.log({"samples": self._table(["prompt", "text"], samples)}, step=step)

    def write_settings(self, step: int, record: dict[str, Any] | None = None) -> None:
        """Begin the run, or continue it. A run never waits for somebody to log in."""
        if self._run is None:
            import wandb  # type: ignore[reportMissingImports]

            if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
                raise ValueError("not logged in: run wandb login, or set WANDB_MODE=offline")
            self._table, quiet = wandb.Table, wandb.Settings(console="off")
            self._run = wandb.init(resume="allow", settings=quiet, **self._arguments)
        if record:
            self._run.config.update(record, allow_val_change=True)

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()
