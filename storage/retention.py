"""Which checkpoints of a run are kept: the newest, every n-th for good, and the best."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from storage.checkpoint_folder import MANIFEST, step_of, verify_checkpoint
from storage.run_folder import RunFolder

log = logging.getLogger(__name__)


@dataclass
class Retention:
    """Deletes checkpoints that no rule keeps, once enough newer ones are known to be sound."""

    newest: int
    """So many newest sound ones stay."""
    every: int
    """Those whose step is a multiple of this stay for good; 0 is none."""
    best: int
    """So many with the smallest score stay."""
    score: Callable[[Path], float | None]
    """A checkpoint's validation loss, if it was measured on just these weights."""
    _sound: set[tuple[str, int]] = field(default_factory=set)

    def sweep(self, folder: RunFolder) -> list[Path]:
        """Delete what may go, the manifest first; returns it.

        A damaged checkpoint never counts as one of the newest. Called only after a newer one was
        committed, so the one that a run was resumed from is safe until then.
        """
        found = folder.all_checkpoints()
        kept = self._best(found) | {p for p in found if self.every and step_of(p) % self.every == 0}
        sound = 0
        doomed = []
        for checkpoint in found:
            if sound >= self.newest:
                if checkpoint not in kept:
                    doomed.append(checkpoint)
            elif len(found) > self.newest and self._is_sound(checkpoint):
                sound += 1
        for checkpoint in doomed:
            (checkpoint / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)
        return doomed

    def _best(self, found: list[Path]) -> set[Path]:
        if not self.best:
            return set()
        scored = [(score, p) for p in found if (score := self.score(p)) is not None]
        scored.sort(key=lambda pair: pair[0])
        return {p for _, p in scored[: self.best]}

    def _is_sound(self, checkpoint: Path) -> bool:
        """Whether every byte is as the manifest says; read once, then remembered."""
        try:
            key = (checkpoint.name, (checkpoint / MANIFEST).stat().st_mtime_ns)
            if key not in self._sound:
                verify_checkpoint(checkpoint)
                self._sound.add(key)
        except (OSError, ValueError) as error:
            log.warning("%s; it is not counted among the checkpoints kept", error)
            return False
        return True
