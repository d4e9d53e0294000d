"""Metrics and samples to trackio, which keeps them on this machine (`trackio show`)."""

from pathlib import Path
from typing import Any

from storage.writers.board_pages import samples_page
from storage.writers.tracker_writer import TrackerWriter


class TrackioWriter(TrackerWriter):
    """One trackio run for a run of ours, also over several starts."""

    name = "trackio"

    def __init__(self, run: Path, run_id: str) -> None:
        self._name = f"{run.name}-{run_id[:8]}"

    def begin(self, record: dict[str, Any] | None) -> None:
        """Begin the run, or continue it."""
        import trackio  # type: ignore[reportMissingImports]

        self._markdown = trackio.Markdown
        self._run = trackio.init("ratchet", self._name, config=record, resume="allow")

    def samples(self, samples: list[tuple[str, str]]) -> Any:
        """Markdown."""
        return self._markdown(samples_page(samples))
