"""The metric writers of a start, without the lines of steps that are done again."""

import logging
import math
from functools import partial
from typing import Any

from parallel.collectives import on_main
from parallel.ranks import Ranks
from storage.event_files import TensorBoard
from storage.json_lines import read_thinned_metrics, truncate_metrics
from storage.metrics import JsonLinesWriter, MetricLog
from storage.run_folder import RunFolder
from storage.writers.console import Console
from storage.writers.console_rows import VALIDATION_LOSS, Evaluations, measured
from storage.writers.log_config import LogConfig
from storage.writers.trackers import trackers
from train.checkpoints.run_position import RunPosition
from train.guards.spikes import Guard, history_of_lines, missing_steps

log = logging.getLogger(__name__)


def open_metric_log(
    folder: RunFolder,
    ranks: Ranks,
    steps: int,
    position: RunPosition | None,
    shown: LogConfig = LogConfig(),  # noqa: B008
) -> MetricLog:
    """Writers, on rank 0 only, for a run that continues at `position`, or a new one.

    Lines and events of steps that will be repeated are removed. Lines before them that a killed
    rank 0 did not write are added from the checkpoint.
    """
    if not ranks.is_main:
        return MetricLog([])
    step = position.step if position is not None else 0
    try:
        written = truncate_metrics(folder.metrics, folder.discarded_metrics, step)
    except OSError as error:
        written = step - 1
        log.error(
            "%s: lines of steps that are done again cannot be moved away (%s); the later line of "
            "a step counts",
            *(folder.metrics, error),
        )
    purge = step if step or folder.tensorboard.exists() else None
    earlier = _earlier_evaluations(folder)
    found = MetricLog(
        [
            Console(steps, shown.seconds, earlier),
            JsonLinesWriter(folder.metrics),
            TensorBoard(folder.tensorboard, purge, earlier.best(VALIDATION_LOSS)),
            *trackers(shown.to, folder.path, folder.run_id),
        ]
    )
    for line in position.lines if position is not None else []:
        if line["step"] > written:
            # JSON has null for a loss that is not finite, and for nothing else.
            values = {k: math.nan if v is None else v for k, v in line.items() if k != "step"}
            found.write(line["step"], values)
    return found


def _earlier_evaluations(folder: RunFolder) -> Evaluations:
    """What the run measured before this start, for comparisons."""
    found = Evaluations()
    try:
        # Of the other lines hardly any need to be parsed.
        for line in read_thinned_metrics(folder.metrics, 1, (f'"{VALIDATION_LOSS}"'.encode(),)):
            found.note(measured(line))
    except OSError as error:  # then the next evaluation is compared with none
        log.error("%s cannot be read (%s)", folder.metrics, error)
    return found


def load_guard_history(guard: Guard, folder: RunFolder, position: RunPosition | None) -> None:
    """Give the guard the steps before `position`. All ranks call this."""
    if position is None:
        return
    history, step, window = position.guard, position.step, guard.config.window
    if history is None:
        history = on_main(partial(_history_of_lines, folder, step, window))
        missing = missing_steps(history, step, window)
        if missing and guard.config.skip_spikes:
            log.warning(
                "this checkpoint is of an older version, and %d of the %d steps before it have no "
                "applied update in %s; limits of spikes may differ from an undisturbed run's",
                *(missing, min(step, window), folder.metrics),
            )
    guard.load_history(history)


def _history_of_lines(folder: RunFolder, step: int, window: int) -> dict[str, Any]:
    try:
        return history_of_lines(folder.metrics, step, window)
    except OSError as error:  # then as without that file
        log.error("%s cannot be read (%s)", folder.metrics, error)
        return {"applied": [], "skipped_in_a_row": 0}
