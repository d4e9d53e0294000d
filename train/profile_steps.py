"""Writes a profiler trace of the steps that `--profile a:b` names.

The trace covers steps a to b - 1 and can be opened at https://ui.perfetto.dev.
"""

import logging
import warnings
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_MOST_DIGITS = 12  # of a step's number
log = logging.getLogger(__name__)


def parse_span(span: str) -> range:
    """The steps a, a + 1, ... b - 1 of a text "a:b". Raises: ValueError if there are none."""
    first, _, end = span.partition(":")
    numbers = all(part.isdecimal() and len(part) <= _MOST_DIGITS for part in (first, end))
    if not (numbers and int(first) < int(end)):
        raise ValueError(f"profile={span} is not a range of steps; use first:end, such as 20:24")
    return range(int(first), int(end))


class ProfiledSteps:
    """Traces a range of steps of this process into one file; does nothing if `span` is None."""

    def __init__(self, span: str | None, folder: Path, device: torch.device) -> None:
        self.steps = range(0) if span is None else parse_span(span)
        self.file = folder / f"profile_{self.steps.start}_{self.steps.stop}.json.gz"
        self.device = device
        self._profiler: profile | None = None

    def before(self, step: int) -> None:
        """Start or end the trace if needed; must be called before every step."""
        if step in self.steps and self._profiler is None:
            self._begin()
        elif step not in self.steps:
            self.close()

    def close(self) -> None:
        """End the trace and write it; must also be called at the end of training."""
        if self._profiler is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels of the last step may still run
        try:
            self._profiler.stop()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(self.file))
            log.info("profiler trace in %s", self.file)
        except (OSError, RuntimeError) as error:  # must not stop training
            log.warning("the profiler trace could not be written: %s", error)
        self._profiler, self.steps = None, range(0)

    def _begin(self) -> None:
        kinds = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        try:
            self._profiler = profile(activities=kinds)
            with warnings.catch_warnings():  # torch 2.11 warns of cycles, of which there are none
                warnings.simplefilter("ignore")
                self._profiler.start()
        except (OSError, RuntimeError) as error:  # such as another profiler on this GPU
            log.warning("no profiler trace: it cannot be started (%s)", error)
            self._profiler, self.steps = None, range(0)
