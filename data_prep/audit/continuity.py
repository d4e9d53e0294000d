"""Whether the steps of a run follow one another without a gap, and so do their windows."""

from collections.abc import Sequence
from itertools import pairwise

from data_prep.audit.run_record import RunRecord, StepRecord
from data_prep.order.skipped_windows import after_skips


def consecutive_windows(steps: Sequence[StepRecord]) -> list[tuple[int, int]]:
    """The windows of the steps as ranges without a gap, each as first and stop."""
    ranges: list[tuple[int, int]] = []
    for step in steps:
        if ranges and ranges[-1][1] == step.first_window:
            ranges[-1] = (ranges[-1][0], step.stop_window)
        else:
            ranges.append((step.first_window, step.stop_window))
    return ranges


def gaps_and_overlaps(
    run: RunRecord, steps: tuple[StepRecord, ...], first: int = 0, stop: int | None = None
) -> list[str]:
    """A sentence for each gap or overlap of steps, from `first` up to `stop`, and of their windows.

    Default: up to the last step that the run has surely done.

    A jump over windows that the run was told to skip is no gap. Neither is a step that read them:
    it may have been done before `skip_windows` was set.
    """
    found = []
    if steps and steps[0].step > first:
        found.append(f"steps {first} to {steps[0].step - 1} have no line")
    begin = after_skips(0, steps[0].windows, run.settings_at(0).skips) if steps else 0
    if steps and steps[0].step == 0 and steps[0].first_window not in (0, begin):
        found.append(f"step 0 begins at window {steps[0].first_window} instead of {begin}")
    for before, after in pairwise(steps):
        if after.step != before.step + 1:
            found.append(f"step {before.step} is followed by step {after.step}")
        kind = "gap" if after.first_window > before.stop_window else "overlap"
        jump = after_skips(before.stop_window, after.windows, run.settings_at(after.step).skips)
        if after.first_window not in (before.stop_window, jump):
            found.append(
                f"{kind}: step {before.step} ends before window {before.stop_window}, step "
                f"{after.step} begins at window {after.first_window}"
            )
    end = run.done if stop is None else min(stop, run.done)
    begin = steps[-1].step + 1 if steps else first
    if begin < end:
        found.append(f"steps {begin} to {end - 1} have no line")
    return found
