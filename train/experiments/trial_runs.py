"""Runs trials, one after another or several at once, each in a fork of a warm process.

The seconds of imports are spent once for each of the runs that are in progress at the same time. A
run that is finished is not run again, and one that was interrupted continues.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from parallel.warm_process import (
    WarmProcess,
    gpus_of_slot,
    rank_environments,
    shared_environment,
    signal_all,
)
from train.experiments.trials import Trial

_REPO = Path(__file__).parents[2]
_SCRIPT = _REPO / "train" / "main.py"
# What every run imports, and what costs it tenths of a second at its end.
_MODULES = (
    "torch._dynamo",
    "torch.nn.parallel",
    "train.main",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch.utils.tensorboard",
)
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 1.0
_SAVING_SECONDS = 120.0

Look = Callable[[Sequence[Trial]], Mapping[str, str]]
"""Called about once a second with the trials in progress. Returns the names of those that are to
stop now, each with its reason."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    trial: Trial
    code: int
    """Exit code of the run."""
    seconds: float
    """From its start to its end; 0 if it was taken."""
    stopped: str = ""
    """Why it was stopped, if it was."""
    taken: bool = False
    """Whether it was finished before."""


@dataclass
class _Running:
    trial: Trial
    processes: list[int]
    started: float = field(default_factory=time.monotonic)
    stopped: str = ""


class TrialRunner:
    """Runs trials in `parallel` slots; each run has `processes` ranks on this machine.

    The threads and GPUs of this machine are shared out among them. Use it as a context manager: at
    the end, also by an exception, the runs in progress are asked to save and stop, and waited for.
    """

    def __init__(self, parallel: int = 1, processes: int = 1) -> None:
        self.parallel, self.processes = parallel, processes
        self._environment = shared_environment(parallel * processes)
        self._warm: list[WarmProcess] = []
        self._ask_again = 0.0
        self._locked_since: float | None = None  # the run that is next

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for warm in self._warm:
            warm.close()

    def run(self, trials: Sequence[Trial], look: Look | None = None) -> Iterator[Ended]:
        """Run the trials; gives each as it ends. Those that are finished come first.

        Raises: RuntimeError if a process in whose forks they start has ended.
        """
        waiting: deque[Trial] = deque()
        for trial in trials:
            if trial.folder.is_finished():
                yield Ended(trial, 0, 0.0, taken=True)
            else:
                waiting.append(trial)
        running: dict[int, _Running] = {}
        looked = time.monotonic()
        while waiting or running:
            for slot in range(self.parallel):
                if waiting and slot not in running and self._may_start(waiting[0]):
                    running[slot] = self._start(slot, waiting.popleft())
            for slot, job in list(running.items()):
                codes = self._warm[slot].wait(0)
                if codes is not None:
                    del running[slot]
                    code = next((code for code in codes if code != 0), 0)
                    seconds = time.monotonic() - job.started
                    yield Ended(job.trial, code, seconds, job.stopped)
            if look is not None and time.monotonic() - looked >= _LOOK_SECONDS:
                _stop_some(running.values(), look([job.trial for job in running.values()]))
                looked = time.monotonic()
            time.sleep(_POLL_SECONDS)

    def _may_start(self, trial: Trial) -> bool:
        """Whether no process writes to the run, or one has for so long that its start may fail.

        The run of an experiment that was killed may still be saving.
        """
        now = time.monotonic()
        if now < self._ask_again:
            return False
        if not trial.folder.is_locked():
            self._locked_since = None
            return True
        self._locked_since = self._locked_since or now
        self._ask_again = now + _LOOK_SECONDS
        return now - self._locked_since > _SAVING_SECONDS

    def _start(self, slot: int, trial: Trial) -> _Running:
        while slot >= len(self._warm):
            self._warm.append(WarmProcess(_MODULES, _REPO, self._environment))
        trial.log.parent.mkdir(parents=True, exist_ok=True)
        with open(os.devnull) as nothing, trial.log.open("ab") as log:
            gpus = gpus_of_slot(slot, self.processes, torch.cuda.device_count())
            environments = rank_environments(self._environment | gpus, self.processes)
            words = (str(_SCRIPT), *trial.words)
            streams = (nothing, log, log)
            return _Running(trial, self._warm[slot].start(words, streams, Path.cwd(), environments))


def _stop_some(running: Iterable[_Running], reasons: Mapping[str, str]) -> None:
    """Ask the named trials to save and stop."""
    for job in running:
        if job.trial.name in reasons and not job.stopped:
            job.stopped = reasons[job.trial.name]
            signal_all(job.processes, signal.SIGTERM)
