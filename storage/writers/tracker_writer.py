"""What the writers for other people's trackers share: one run there for a run of ours."""

from typing import Any

from storage.metrics import Metrics, MetricWriter
from storage.writers.board_pages import curves


class TrackerWriter(MetricWriter):
    """Sends curves under the tags of TensorBoard. The library is imported with the first line."""

    _run: Any = None
    """The library's run, once it has begun."""

    def begin(self, record: dict[str, Any] | None) -> None:
        """Begin the library's run, or continue it; `record` is the content of config.json."""
        raise NotImplementedError

    def samples(self, samples: list[tuple[str, str]]) -> Any:
        """Prompts and their continuations as the library shows them."""
        raise NotImplementedError

    def write(self, step: int, metrics: Metrics) -> None:
        """Send the values that are curves."""
        self._log(step, curves(metrics))

    def write_samples(self, step: int, samples: list[tuple[str, str]]) -> None:
        """Send the samples."""
        self.write_settings(step)
        self._log(step, {"samples": self.samples(samples)})

    def write_settings(self, step: int, record: dict[str, Any] | None = None) -> None:
        """Begin the run if that has not been done."""
        if self._run is None:
            self.begin(record)

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self.write_settings(step)
        self._run.log(values, step=step)
