"""What the learning rate does after a change of it, said before the run continues."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import isclose
from pathlib import Path

from storage.run_folder import RunFolder
from train.checkpoints.config_changes import Change
from train.checkpoints.run_position import RunPosition, load_position
from train.config import Config
from train.schedule import course_of_rate, learning_rate

_DECIDE_RATE = ("steps", "schedule.", "optimizer.lr")  # settings, by how their keys begin
log = logging.getLogger(__name__)


def announce_rate(
    changes: list[Change], folder: RunFolder, config: Config, steps: int, position: RunPosition
) -> None:
    """Log the learning rate before and after, and its course, if a changed setting moves it.

    If it jumps up, name the newest checkpoint from which a run continues without a jump.
    """
    changes = [change for change in changes if change.key.startswith(_DECIDE_RATE)]
    step, before = position.step, _last_rate(position)
    if not changes or before is None or step >= steps:
        return
    settings = {"steps": steps, "max_lr": config.optimizer.lr, "config": config.schedule}
    rate = partial(learning_rate, **settings)
    keys = [change.key for change in changes]
    told = f"{course_of_rate(step, **settings)}, since {', '.join(keys)} changed"
    jumps = rate(step - 1) > before and not isclose(rate(step - 1), before)
    found = _newest_without_jump(folder, rate) if jumps else None
    if found is not None:
        flags = " ".join(f"--{c.key.replace('_', '-')} {c.now}" for c in changes)
        told += (
            f"; another run can continue an earlier checkpoint without this jump: --branch {found} "
            f"--out NEW {flags} --allow {' '.join(keys)}"
        )
    log.warning("the learning rate was %.3g at step %d and %s", before, step - 1, told)


def _newest_without_jump(folder: RunFolder, rate: Callable[[int], float]) -> Path | None:
    """The newest checkpoint whose last update had the rate that it would have now."""
    for checkpoint in folder.all_checkpoints():
        with suppress(OSError, ValueError):  # a damaged one
            position = load_position(checkpoint)
            before = _last_rate(position)
            if before is not None and isclose(rate(position.step - 1), before):
                return checkpoint
    return None


def _last_rate(position: RunPosition) -> float | None:
    """The learning rate of the last update before `position`, if it is recorded."""
    rate = position.lines[-1].get("train/lr") if position.lines else None
    return rate if isinstance(rate, float) else None
