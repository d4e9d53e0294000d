"""Whether a run has finished: at its last step, or where it had stopped improving."""

from dataclasses import dataclass

from storage.run_folder import RunFolder
from train.checkpoints.recorded_config import recorded_settings


@dataclass(frozen=True)
class FinishedRun:
    """A run whose status says that it has finished."""

    step: int
    """The step at which it did."""
    stopped: bool
    """Whether it ends there whatever its number of steps, by `--stop-when-worse`."""


def finished_run(folder: RunFolder, stop_when_worse: int | None) -> FinishedRun | None:
    """The end of the run in the folder; None if its status says anything else.

    `stop_when_worse`: the present setting. A larger one lets a run that had stopped continue. Where
    the status is lost, the newest checkpoint has the same count and the run ends there again.
    """
    status = folder.read_status() or {}
    step = status.get("step")
    if status.get("state") != "finished" or not isinstance(step, int):
        return None
    settings = recorded_settings(folder) or {}
    before = settings.get("stop_when_worse")
    if not status.get("reason") or not isinstance(before, int) or stop_when_worse is None:
        return FinishedRun(step, stopped=False)
    return FinishedRun(step, stopped=stop_when_worse <= before)
