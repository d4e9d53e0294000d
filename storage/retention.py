"""Which checkpoints of a run are kept: newest, every N-th step, best, and named steps."""

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
from storage.run_folder import RunFolder

log = logging.getLogger(__name__)


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
