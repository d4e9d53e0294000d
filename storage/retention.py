"""When checkpoints are written, and which stay: newest, every N-th step, best, named ones."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from storage.checkpoint_folder import (
    delete_checkpoint,
    manifest_mtime,
    step_of,
    verify_checkpoint,
)
from storage.option_values import check_at_least
from storage.options.usual import Usual
from storage.run_folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveConfig:
    """When checkpoints are written and kept. One is also written at the end and at a stop."""

    every: int = 0
    """Steps between checkpoints. 0 disables it."""
    # On two CPU cores a step waits 0.12 s for the copy of a 124M model: 0.1 % of two minutes
    # (bench/LOG.md).
    every_minutes: Usual[float] = 2.0
    """Minutes between checkpoints. 0 disables it."""
    keep: int = 2
    """Keep the N newest checkpoints; damaged ones do not count."""
    keep_every: int = 0
    """Write a checkpoint every N steps and never delete it. 0 disables it."""
    keep_best: int = 1
    """Keep the N checkpoints with the smallest validation loss. 0 disables it."""

    def __post_init__(self) -> None:
        check_at_least("save.every", self.every, 0)
        check_at_least("save.every_minutes", self.every_minutes, 0)
        check_at_least("save.keep", self.keep, 1)
        check_at_least("save.keep_every", self.keep_every, 0)
        check_at_least("save.keep_best", self.keep_best, 0)

    def max_kept(self, steps: int) -> int:
        """Largest number of checkpoints on the disk after `steps` steps."""
        return self.keep + self.keep_best + (steps // self.keep_every if self.keep_every else 0)


@dataclass
class Retention:
    """Deletes checkpoints that no rule keeps, once enough newer ones are verified."""

    newest: int
    """Number of newest undamaged checkpoints that stay."""
    every: int
    """Checkpoints whose step is a multiple of this stay; 0 disables it."""
    best: int
    """Number of checkpoints with the smallest scores that stay."""
    score: Callable[[Path], float | None]
    """The validation loss of a checkpoint's own weights; None if it was not measured."""
    steps: tuple[int, ...] = ()
    """The checkpoints of these steps stay."""
    _verified: set[tuple[str, int]] = field(default_factory=set)

    def sweep(self, folder: RunFolder) -> list[Path]:
        """Delete the checkpoints that no rule keeps; returns them.

        A damaged checkpoint does not count as one of the newest, and one of another run stays. Call
        this only after a new checkpoint was written: until then the one that the run was resumed
        from must stay. Raises: FolderLost if the folder is no longer this process's.
        """
        found = folder.all_checkpoints()
        kept = self._best(found) | {p for p in found if self.every and step_of(p) % self.every == 0}
        kept |= {p for p in found if step_of(p) in self.steps}
        undamaged = 0
        deleted = []
        for checkpoint in found:
            if undamaged >= self.newest:
                if checkpoint not in kept:
                    deleted.append(checkpoint)
            elif len(found) > self.newest and self._is_undamaged(checkpoint):
                undamaged += 1
        for checkpoint in deleted:
            folder.check()
            delete_checkpoint(checkpoint)
        return deleted

    def _best(self, found: list[Path]) -> set[Path]:
        if not self.best:
            return set()
        scored = [(score, p) for p in found if (score := self.score(p)) is not None]
        scored.sort(key=lambda pair: pair[0])
        return {p for _, p in scored[: self.best]}

    def _is_undamaged(self, checkpoint: Path) -> bool:
        """Whether every byte is as the manifest says. Each checkpoint is read once."""
        try:
            key = (checkpoint.name, manifest_mtime(checkpoint))
            if key not in self._verified:
                verify_checkpoint(checkpoint)
                self._verified.add(key)
        except (OSError, ValueError) as error:
            log.warning("%s; it is not counted among the checkpoints kept", error)
            return False
        return True
