"""Checkpoints: written aside, digested, flushed and renamed by a thread while training goes on."""

import errno
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from data_prep.tokenizer import Tokenizer
from model.checkpoint import save_weights, write_tensors
from model.gpt import GPTConfig
from storage.atomic import new_folder, read_json, write_json
from storage.retention import Retention, step_of
from storage.run_folder import RunFolder, verify_checkpoint, write_manifest
from train.resume import FORMAT, Position
from train.snapshot import OPTIMIZER, WEIGHTS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, on the host."""

    position: Position
    network: GPTConfig
    tensors: dict[str, Tensor]
    """As `state_tensors` names them."""
    tokenizer: Tokenizer
    results: dict[str, Any]
    """The last evaluation: its step and metrics."""

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that beginning."""
        found = {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def write_checkpoint(folder: RunFolder, contents: Contents) -> Path:
    """Write everything a run needs to go on, and point `latest` at it.

    Raises: OSError if it cannot be written; what was there before is untouched then.
    """
    path = folder.checkpoint(contents.position.step)
    if not _is_there(path):
        _check_room(folder, contents.bytes)
        with new_folder(path) as aside:
            save_weights(aside, contents.network, contents.under(WEIGHTS))
            (aside / "tokenizer").mkdir()
            contents.tokenizer.save(aside / "tokenizer")
            write_tensors(aside / "optimizer.safetensors", contents.under(OPTIMIZER))
            write_json(aside / "results.json", contents.results)
            write_json(aside / "state.json", {"format": FORMAT, **asdict(contents.position)})
            write_manifest(aside)
    folder.point_latest_at(path)
    return path


def _is_there(path: Path) -> bool:
    """Whether this very state was saved before; a damaged one of that name is set aside."""
    if not path.exists():
        return False
    try:
        verify_checkpoint(path)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.broken.{time.time_ns()}")
        log.warning("%s; moved to %s", error, aside)
        path.rename(aside)
        return False
    return True


def _check_room(folder: RunFolder, size: int) -> None:
    """A disk filled to the last byte would take the metrics and the status with it."""
    free = shutil.disk_usage(folder.path).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{free / 1e9:.2f} GB free, {size / 1e9:.2f} GB needed")


def validation_loss_of(checkpoint: Path) -> float | None:
    """The validation loss measured on just these weights, if it was."""
    try:
        results = read_json(checkpoint / "results.json")
    except (OSError, ValueError):
        return None
    same = results.get("step") == step_of(checkpoint)
    return results["metrics"].get("val/loss") if same else None


class Saver:
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

    def begin(self, contents: Contents, ready: Callable[[], None], stall_seconds: float) -> None:
        """Write `contents` once `ready` returns. There must be none in flight."""
        self.asked_step, self.asked_at = contents.position.step, time.monotonic()
        self._thread = threading.Thread(
            target=self._write, args=(contents, ready, stall_seconds), daemon=True, name="saver"
        )
        self._thread.start()

    def tell(self) -> None:
        """A word about a save that failed since the last call; the run goes on."""
        if not self.busy and self._error is not None:
            error, self._error = self._error, None
            log.error(
                "a checkpoint could not be written (%s); training goes on, the older ones are "
                "kept, and it is tried again at the next save",
                error,
            )

    def settle(self, seconds: float | None = None) -> None:
        """Wait for the save in flight, or only so long; a word if it failed."""
        if self._thread is not None:
            self._thread.join(seconds)
        self.tell()

    def drain(self) -> None:
        """Wait for the save in flight. Raises: what made it fail, if it did."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, contents: Contents, ready: Callable[[], None], stall_seconds: float) -> None:
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
