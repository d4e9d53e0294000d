"""`--profile a:b`: a profiler trace of steps a to b - 1, for https://ui.perfetto.dev."""

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

log = logging.getLogger(__name__)


def parse_span(span: str) -> range:
    """The steps that "a:b" names: a, a + 1, ... b - 1. Raises: ValueError if it names none."""
    first, _, end = span.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise ValueError(f"profile={span} is not a span of steps; use first:end, such as 20:24")
    return range(int(first), int(end))


class ProfiledSteps:
    """Traces a span of steps of this process into one file; without a span it does nothing."""

    def __init__(self, span: str | None, folder: Path, device: torch.device) -> None:
        self.steps = range(0) if span is None else parse_span(span)
        self.file = folder / f"profile_{self.steps.start}_{self.steps.stop}.json.gz"
        self.device = device
        self._profiler: profile | None = None

    def before(self, step: int) -> None:
        """To be called before every step: begins and ends the trace where the span does."""
        if step in self.steps and self._profiler is None:
            self._begin()
        elif step not in self.steps:
            self.close()

    def close(self) -> None:
        """Write what was traced; also where training ends inside the span."""
        if self._profiler is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels of the last step still run
        self._profiler.stop()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(self.file))
            log.info("profiler trace in %s", self.file)
        except (OSError, RuntimeError) as error:  # a trace never stops training
            log.warning("no profiler trace: %s", error)
        self._profiler, self.steps = None, range(0)

    def _begin(self) -> None:
        kinds = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=kinds)
        self._profiler.start()
