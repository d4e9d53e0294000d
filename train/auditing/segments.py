"""Which segments of a run are repeated, and what repeating each has shown."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_prep.order.training_data import TrainingData
from parallel.collectives import on_main
from parallel.ranks import Ranks
from train.auditing.comparison import close_problems, exact_problems, tolerances
from train.auditing.recorded_run import RecordedRun
from train.auditing.reexecution import repeat_segment
from train.preflight.initial_weights import checkpoint_of_init

_WORDS = {"train/loss": "loss", "train/grad_norm": "gradient norm", "val/loss": "validation loss"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentResult:
    """What repeating one segment has shown."""

    first: int
    stop: int
    """The step after its last, whose checkpoint is kept."""
    steps: int
    """How many of its steps were repeated, from the first on."""
    how: str
    """What was compared how: bit for bit, or within which tolerance and why."""
    problems: Sequence[str]

    @property
    def whole(self) -> bool:
        """Whether all of it was repeated, so that the state at its end was compared."""
        return self.first + self.steps == self.stop


def draw_segments(
    segments: Sequence[tuple[int, int]], count: int, seed: int
) -> list[tuple[int, int]]:
    """`count` of the segments, or all if there are fewer, in the order of the run."""
    return sorted(random.Random(seed).sample(list(segments), min(count, len(segments))))


def why_no_beginning(run: RecordedRun) -> str:
    """Why the steps from 0 on cannot be repeated; empty if they can, or are another run's."""
    config = run.stretch_at(0).config
    if config.init is None or run.first_step:
        return ""
    try:
        checkpoint_of_init(config.init)
    except (ValueError, OSError) as error:
        return f"the run began with --init {config.init}, which is not here ({error})"
    return ""


def audit_segment(
    run: RecordedRun,
    data: TrainingData,
    ranks: Ranks,
    segment: tuple[int, int],
    most_steps: int | None,
) -> SegmentResult:
    """Repeat a segment, or its first steps, and compare. All ranks call this.

    Where the bits may differ and do, it is repeated once more in other micro-batches: what these
    move, by rounding alone, is the measure of what may differ.
    """
    first, stop = segment
    end = stop if most_steps is None else min(stop, first + most_steps)
    log.info("repeating steps %d to %d", first, end - 1)
    repeated = repeat_segment(run, data, ranks, first, end)
    problems = on_main(lambda: list(exact_problems(run, repeated, end)))
    how = "bit for bit"
    if problems and repeated.differences:
        log.info("once more in other micro-batches, to measure rounding")
        otherwise = repeat_segment(run, data, ranks, first, end, otherwise=True)
        problems = on_main(lambda: list(close_problems(run, repeated, otherwise, end)))
        how = f"within {_in_words(tolerances(repeated, otherwise))}, not bit for bit, since "
        how += f"rounding differs: {'; '.join(dict.fromkeys(repeated.differences))}"
    return SegmentResult(first, stop, end - first, how, problems)


def _in_words(allowed: Mapping[str, float]) -> str:
    """The tolerances of the figures that a person reads."""
    found = [f"{word} {allowed[key]:.1g}" for key, word in _WORDS.items() if key in allowed]
    return ", ".join(found)
