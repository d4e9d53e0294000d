"""Writes checkpoints on a thread while training continues, one at a time."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from storage.checkpoint_folder import replace_results
from storage.metrics import Metrics
from storage.ownership.folder_lock import FolderLost
from storage.retention import Retention
from storage.run_folder import RunFolder
from train.checkpoints.checkpoint import CheckpointContents, turn_best, write_checkpoint
from train.checkpoints.host_copy import HostCopy

log = logging.getLogger(__name__)


class BackgroundSave:
    """Writes one checkpoint at a time on a thread. A failure is logged and never stops training."""

    def __init__(
        self,
        folder: RunFolder,
        retention: Retention,
        host_copy: HostCopy,
        saved_step: int = -1,
    ) -> None:
        self.folder = folder
        self.retention = retention
        self.host_copy = host_copy
        self.saved_step = saved_step
        """Step of the newest checkpoint on disk."""
        self.begun_step = saved_step
        """Step of the newest checkpoint whose writing has begun."""
        self.begun_at = time.monotonic()
        """When that was, or when this process started."""
        self.results_step = -1
        """Step of the evaluation whose results the newest checkpoint has."""
        self.longest_seconds = 0.0
        """The longest save so far, copy and writing."""
        self._metrics: Metrics = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, contents: CheckpointContents, stall_seconds: float) -> None:
        """Write `contents` once the host copy is complete. No save may be in flight.

        `stall_seconds` is the time for which training waited.
        """
        self.begun_step, self.begun_at = contents.position.step, time.monotonic()
        self._metrics["speed/save_stall_milliseconds"] = 1000 * stall_seconds
        self._thread = threading.Thread(
            target=self._write, args=(contents, stall_seconds), daemon=True, name="saver"
        )
        self._thread.start()

    def add_results(self, results: dict[str, Any]) -> None:
        """Write results into the checkpoint of their step. No save may be in flight."""
        if self.saved_step == results["step"] != self.results_step:  # otherwise that save failed
            self._thread = threading.Thread(
                target=self._add_results, args=(results,), daemon=True, name="saver"
            )
            self._thread.start()

    def take_metrics(self) -> Metrics:
        """Metrics of saves since the last call."""
        found, self._metrics = self._metrics, {}
        return found

    def log_failure(self) -> None:
        """Log the failure of a save since the last call, if there was one. The run continues."""
        if not self.busy and self._error is not None:
            error, self._error = self._error, None
            log.error(
                "a checkpoint could not be written (%s); training continues, the older ones are "
                "kept, and it is tried again at the next save",
                error,
            )

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the save in flight, at most `seconds`. A failure is logged."""
        if self._thread is not None:
            self._thread.join(seconds)
        self.log_failure()

    def wait_or_raise(self) -> None:
        """Wait for the save in flight. Raises: its error, if it failed."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, contents: CheckpointContents, stall_seconds: float) -> None:
        started = time.perf_counter()
        step = contents.position.step
        try:
            self.host_copy.wait()
            path = write_checkpoint(self.folder, contents)
        except Exception as error:  # an error of a thread reaches nobody: the loop asks for it
            if not self._is_lost():  # of that the loop learns by itself
                self._error = _as_disk_error(error)
            return
        self.saved_step, self.results_step = step, contents.results.get("step", -1)
        seconds = time.perf_counter() - started
        self.longest_seconds = max(self.longest_seconds, stall_seconds + seconds)
        log.info(
            "%s saved: %.1f MB, the step waited %.1f ms, written in %.2f s",
            path.name,
            contents.bytes / 1e6,
            1000 * stall_seconds,
            seconds,
        )
        self._after(path, lambda: self.folder.write_status("running", step))
        self._sweep(path)

    def _add_results(self, results: dict[str, Any]) -> None:
        path = self.folder.checkpoint(results["step"])

        def replace() -> None:
            self.folder.check()
            replace_results(path, results)
            self.results_step = results["step"]

        self._after(path, replace)
        self._sweep(path)  # by the loss, now known

    def _sweep(self, path: Path) -> None:
        """Delete what no rule keeps, and point `best` at what is best of the rest."""
        self._after(path, lambda: self.retention.sweep(self.folder))
        self._after(path, lambda: turn_best(self.folder))

    def _after(self, path: Path, action: Callable[[], object]) -> None:
        """Do what belongs to a checkpoint that is there. A failure is logged."""
        try:
            action()
        except Exception as error:  # an error of a thread reaches nobody
            if not self._is_lost():
                log.error("after %s: %s; training continues", path.name, error)

    def _is_lost(self) -> bool:
        """Whether the run folder is gone, which also explains most other errors."""
        with suppress(FolderLost):
            self.folder.check()
        return bool(self.folder.lost)


def _as_disk_error(error: Exception) -> Exception:
    """An error of the safetensors library as the disk error that it reports."""
    return OSError(str(error)) if isinstance(error, SafetensorError) else error
