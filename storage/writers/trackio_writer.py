"""Metrics and samples to trackio, which keeps them on this machine (`trackio show`)."""

from pathlib import Path
from typing import Any

from storage.metrics import Metrics, MetricWriter
from storage.writers.board_pages import curves, samples_page


class TrackioWriter(MetricWriter):
    """One trackio run for a run of ours, also over several starts. Imported with the first line."""

    name = "trackio"

    def __init__(self, run: Path, run_id: str) -> None:
        self._name = f"{run.name}-{run_id[:8]}"
        self._run: Any = None

    def write(self, step: int, metrics: Metrics) -> None:
        """Send the values that are curves, under the tags of TensorBoard."""
        self.write_settings(step)
        self._run.log(curves(metrics), step=step)

    def write_samples(self, step: int, samples: list[tuple[str, str]]) -> None:
        """Send the samples as Markdown."""
        self.write_settings(step)
        self._run.log({"samples": self._markdown(samples_page(samples))}, step=step)

    def write_settings(self, step: int, record: dict[str, Any] | None = None) -> None:
        """Begin the run, or continue it."""
        if self._run is None:
            import trackio  # type: ignore[reportMissingImports]

            self._markdown = trackio.Markdown
            self._run = trackio.init("ratchet", self._name, config=record, resume="allow")

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()
