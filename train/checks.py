"""What all ranks check together before a step: skipped updates, replicas, stragglers.

At the top of the loop, before step s, every rank has read the values of exactly the steps up to
s - 2. So all ranks decide alike and call the same collectives.
"""

import logging
from contextlib import suppress
from pathlib import Path

from parallel.collectives import all_gather_object
from train.checkpoints.host_copy import state_tensors
from train.config import Config
from train.guards.replicas import compare_replicas
from train.guards.spikes import MAX_SKIPPED_IN_A_ROW, Skipped
from train.guards.stragglers import gather_compute_times, slow_ranks
from train.reporting.black_box import own_windows, write_black_box
from train.run import Run

_MAX_SPIKE_BOXES = 5  # of one process
_TENSORS_NAMED = 5
log = logging.getLogger(__name__)


class StopTraining(RuntimeError):
    """The run must not continue by itself: a restart would end the same way."""


def check(run: Run) -> None:
    """Handle skipped updates, and compare the ranks when that is due. All ranks call this.

    Raises: StopTraining if the run must not continue, or its state must not be saved.
    """
    _handle_skipped(run)
    if run.compared_step != run.step and _comparison_due(run.config, run.step, run.steps):
        compare_ranks(run)


def check_before_last_save(run: Run) -> None:
    """The same at the end of a run, at any step, and the data. Raises: StopTraining."""
    # Also a rank that was asked to stop for another reason may just have found damaged data.
    for damage in all_gather_object(run.recheck.sentence(run.step, run.folder)):
        if damage:
            raise StopTraining(damage)
    _handle_skipped(run)
    if run.config.guard.every and run.step > 0 and run.compared_step != run.step:
        compare_ranks(run)


def _handle_skipped(run: Run) -> None:
    """Write a black box of a skipped spike, and of the last step before the run stops.

    Raises: StopTraining after too many skipped updates in a row.
    """
    guard = run.progress.guard
    skipped, row = guard.take_skipped(), guard.skipped_in_a_row
    if skipped is None:
        return
    if not skipped.is_spike and row == 1:
        _check_token_ids(run, skipped)
    if row >= MAX_SKIPPED_IN_A_ROW:
        _stop_after_skips(run, skipped, row)
    if skipped.is_spike and row == 1 and guard.boxes < _MAX_SPIKE_BOXES:
        guard.boxes += 1
        path = _write_step_record(run, skipped, row)
        log.warning(
            "step %d was skipped as a spike: loss %.4g, gradient norm %.4g%s",
            skipped.step,
            skipped.loss,
            skipped.norm,
            f"; see {path}" if path else "",
        )


def _check_token_ids(run: Run, skipped: Skipped) -> None:
    """Look for ids without a row in the head: as targets they make the loss NaN on CUDA.

    Raises: StopTraining on all ranks if one of them took such an id.
    """
    sentence, rows = "", len(run.model.head_weight)
    with suppress(OSError):  # the loader will meet it too, and says more
        for number, window in own_windows(run, skipped.first_window).items():
            if (largest := int(window.max())) >= rows:
                sentence = (
                    f"window {number} of step {skipped.step} contains the token id {largest}, but "
                    f"the network has only the ids below {rows}: the data are damaged, "
                    f"see python data_prep/verify.py {run.config.data_text}; the update was skipped"
                )
    for found in filter(None, all_gather_object(sentence)):
        raise StopTraining(found)


def _write_step_record(run: Run, skipped: Skipped, row: int) -> Path | None:
    """Write a black box. It records whether the weights are still those that the step saw."""
    guard = run.progress.guard
    with run.aside():  # which also tells whether the step after it was skipped too
        untouched = run.step == skipped.step + 1 + guard.skipped_in_a_row - row
        return write_black_box(run, skipped, exact=untouched)


def _stop_after_skips(run: Run, skipped: Skipped, row: int) -> None:
    """Write a black box of the step and stop the run. Raises: StopTraining."""
    what = "were spikes" if skipped.is_spike else "had a loss or gradient that is not finite"
    path = _write_step_record(run, skipped, row)
    box = f"; python train/replay.py {path} shows where" if path else ""
    raise StopTraining(
        f"{row} steps in a row up to step {skipped.step} {what}; their updates were skipped, the "
        f"last checkpoint is sound{box}. Lower the learning rate, or look at the data of these "
        "steps and leave them out with --skip-windows"
    )


def _comparison_due(config: Config, step: int, steps: int) -> bool:
    """Whether the ranks are compared before this step: every `guard.every` steps, and at saves.

    A checkpoint by the clock waits for such a step, see `save_due`.
    """
    every, save = config.guard.every, config.save
    if not every or step == 0:
        return False
    periods = [every, save.every, save.keep_every, config.eval.every if save.keep_best else 0]
    return step == steps or any(period and step % period == 0 for period in periods)


def is_compared(run: Run) -> bool:
    """Whether the ranks are known to agree on the present state. Only then it may be saved."""
    alone = run.ranks.world_size == 1 or not run.config.guard.every
    return alone or run.compared_step == run.step


def compare_ranks(run: Run) -> None:
    """Compare weights and moments bit by bit, and compute times.

    Raises: StopTraining if weights or moments differ.
    """
    run.compared_step = run.step
    if run.ranks.world_size == 1:
        return
    with run.aside():  # a hang is noticed here, before the comparison could hang too
        state = state_tensors(run.model, run.learner.optimizer)
        wrong = compare_replicas(state, run.ranks)
        compute_times = gather_compute_times(run.compute_time.take(), run.ranks)
    for sentence in slow_ranks(compute_times):
        log.warning("step %d: %s", run.step, sentence)
    if wrong:
        shown = "; ".join(wrong[:_TENSORS_NAMED])
        more = f"; and {len(wrong) - _TENSORS_NAMED} more" if len(wrong) > _TENSORS_NAMED else ""
        raise StopTraining(
            f"the ranks no longer hold the same numbers after {run.step} updates: {shown}{more}. "
            "Nothing was saved since they last did; start the run again to continue from there, "
            "and have that machine's memory and GPU tested if it happens again"
        )
