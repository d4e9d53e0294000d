"""Checkpoints: written aside, digested, flushed and renamed by a thread while training goes on."""

import logging
import threading
import time
from collections.abc import Callable

from safetensors import SafetensorError

from storage.retention import Retention
from storage.run_folder import RunFolder
from train.checkpoints.checkpoint import CheckpointContents, write_checkpoint

log = logging.getLogger(__name__)


class BackgroundSave:
    """Writes one checkpoint at a time on a thread. A failure is told, and never stops training."""

    def __init__(self, folder: RunFolder, retention: Retention, saved_step: int = -1) -> None:
        self.folder = folder
        self.retention = retention
        self.saved_step = saved_step
        """Step of the newest checkpoint that is on disk."""
        self.asked_step = saved_step
        """Step of the newest checkpoint that was begun."""
        self.asked_at = time.monotonic()
        """When the last save began, or this process."""
        self.longest_seconds = 0.0
        """Of all saves so far, copy and writing."""
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def begin(
        self, contents: CheckpointContents, ready: Callable[[], None], stall_seconds: float
    ) -> None:
        """Write `contents` once `ready` returns. There must be none in flight."""
        self.asked_step, self.asked_at = contents.position.step, time.monotonic()
        self._thread = threading.Thread(
            target=self._write, args=(contents, ready, stall_seconds), daemon=True, name="saver"
        )
        self._thread.start()

    def log_failure(self) -> None:
        """A word about a save that failed since the last call; the run goes on."""
        if not self.busy and self._error is not None:
            error, self._error = self._error, None
            log.error(
                "a checkpoint could not be written (%s); training goes on, the older ones are "
                "kept, and it is tried again at the next save",
                error,
            )

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the save in flight, or only so long; a word if it failed."""
        if self._thread is not None:
            self._thread.join(seconds)
        self.log_failure()

    def wait_or_raise(self) -> None:
        """Wait for the save in flight. Raises: what made it fail, if it did."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(
        self, contents: CheckpointContents, ready: Callable[[], None], stall_seconds: float
    ) -> None:
        started = time.perf_counter()
        step = contents.position.step
        try:
            ready()
            path = write_checkpoint(self.folder, contents)
        except Exception as error:  # a thread's error reaches nobody: the loop asks for it
            self._error = _as_disk_error(error)
            return
        self.saved_step = step
        seconds = time.perf_counter() - started
        self.longest_seconds = max(self.longest_seconds, stall_seconds + seconds)
        log.info(
            "%s saved: %.1f MB, the step waited %.1f ms, written in %.2f s",
            path.name,
            contents.bytes / 1e6,
            1000 * stall_seconds,
            seconds,
        )
        try:
            self.folder.write_status("running", step)
            self.retention.sweep(self.folder)
        except (OSError, ValueError) as error:
            log.error("after %s: %s; training goes on", path.name, error)


def _as_disk_error(error: Exception) -> Exception:
    """The safetensors library's disk errors as what they are."""
    return OSError(str(error)) if isinstance(error, SafetensorError) else error
