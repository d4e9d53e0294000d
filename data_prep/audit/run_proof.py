"""The proof of a run's training data: the digest of each step, computed from the shards."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from data_prep.audit.run_record import RunRecord, StepRecord, gaps_and_overlaps, parse_range
from data_prep.dataset.comparison import differing_files
from data_prep.dataset.shards import DataSet
from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource, read_windows, windows_digest

log = logging.getLogger(__name__)
_DIFFERENCES_SHOWN = 10


def prove_run(data: DataSet, run: RunRecord, steps: str | None, threads: int) -> bool:
    """Whether the run read the windows that follow from its data set, seed and settings.

    Logs the result and the first problems.
    Raises: ValueError if the run has other data, or if a shard that the proof reads differs from
    the manifest.
    """
    run.check_data(data)
    first, stop = parse_range(steps)
    # A run that has lost the lines of its steps is not proven; of other steps nothing can be said.
    chosen = run.steps_between(first, stop) if first < run.done else run.steps_in(steps)
    discarded = [s for s in run.discarded if first <= s.step and (stop is None or s.step < stop)]
    # Not the stored indexes of the epochs: what the proof reads is compared with the manifest.
    stream = TrainingStream(data.split("train"), run.seed, stored_indexes=False)
    _check_shards(data, stream, run, None if steps is None else (*chosen, *discarded), threads)
    start = time.perf_counter()
    differing = _digest_errors(stream, run, chosen, threads)
    # Nothing records which settings were in force when a discarded step was done: accept any.
    sizes = [run.windows, *(settings.windows for _, settings in run.earlier)]
    discarded_errors = _digest_errors(stream, run, discarded, threads, sizes) if discarded else []
    seconds = time.perf_counter() - start
    breaks = gaps_and_overlaps(run, chosen, first, stop)
    log.info(
        "%s: data set %s, seed %d, windows of %d tokens",
        run.folder,
        data.fingerprint[:16],
        run.seed,
        run.context_length,
    )
    if chosen:
        tokens = run.context_length * sum(step.windows for step in (*chosen, *discarded))
        speed = f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s"
        log.info(
            "steps %d to %d: %d of %d agree with the shards (%s)",
            chosen[0].step,
            chosen[-1].step,
            len(chosen) - len(differing),
            len(chosen),
            speed,
        )
    if discarded:
        agree = len(discarded) - len(discarded_errors)
        log.info("%d steps were lost in a stop and done again: %d agree", len(discarded), agree)
    if chosen:
        log.info(
            "windows %d to %d: %s",
            chosen[0].first_window,
            chosen[-1].stop_window - 1,
            f"{len(breaks)} breaks" if breaks else "no gap, no overlap",
        )
    _log_problems([*differing, *(f"discarded {error}" for error in discarded_errors), *breaks])
    if breaks and run.damaged_lines:
        log.info("metrics.jsonl has damaged lines: %s", ", ".join(map(str, run.damaged_lines)))
    return not (differing or discarded_errors or breaks)


def _log_problems(problems: Sequence[str]) -> None:
    for problem in problems[:_DIFFERENCES_SHOWN]:
        log.info("DIFFERS  %s", problem)
    if len(problems) > _DIFFERENCES_SHOWN:
        log.info("... and %d more", len(problems) - _DIFFERENCES_SHOWN)


def _check_shards(
    data: DataSet,
    stream: TrainingStream,
    run: RunRecord,
    steps: Sequence[StepRecord] | None,
    threads: int,
) -> None:
    """Compare what a proof reads with the manifest: lengths of all shards, tokens of some.

    Those are the shards that `steps` have read; without steps they are all of training.
    Raises: ValueError naming each file that differs.
    """
    shards = data.manifest.train.shards
    lengths = [(f"{shard.name}.lengths.npy", shard.lengths_sha256) for shard in shards]
    _raise_if_differing(data, lengths, threads)  # the places of documents follow from them
    numbers = range(len(shards)) if steps is None else _shards_of(data, stream, run, steps)
    tokens = [(f"{shards[n].name}.npy", shards[n].tokens_sha256) for n in numbers]
    _raise_if_differing(data, tokens, threads)


def _raise_if_differing(data: DataSet, files: Sequence[tuple[str, str]], threads: int) -> None:
    differing = differing_files(data, files, threads)
    if differing:
        raise ValueError(
            f"{len(differing)} of {len(files)} files that the proof reads differ from the manifest "
            "of the data set, so nothing can be proven with them; copy them again or prepare the "
            "data set again, then run this again: it names the steps that had other tokens\n"
            + "\n".join(differing)
        )


def _shards_of(
    data: DataSet, stream: TrainingStream, run: RunRecord, steps: Sequence[StepRecord]
) -> list[int]:
    """The numbers of the training shards with a document that one of the steps read."""
    stops = np.cumsum([shard.documents for shard in data.manifest.train.shards])
    found: set[int] = set()
    for step in steps:
        start, count = step.first_window * run.context_length, step.windows * run.context_length
        for piece in stream.pieces(start, count + 1):
            found |= set(np.searchsorted(stops, piece.documents, side="right").tolist())
            if len(found) == len(stops):
                return sorted(found)
    return sorted(found)


def _digest_error(
    stream: TrainingStream, run: RunRecord, step: StepRecord, sizes: Sequence[int] = ()
) -> str | None:
    """What is wrong with the metric line of a step; None if its digest follows from the shards.

    `sizes` are the numbers of windows that it may have; default: the one in force at that step.
    """
    expected = run.settings_at(step.step).windows
    if step.windows not in (sizes or (expected,)):
        return f"step {step.step}: {step.windows} windows, the configuration says {expected}"
    windows = read_windows(OneSource(stream), step.first_window, step.windows, run.context_length)
    digest = f"{windows_digest(step.first_window, windows):016x}"
    if digest != step.digest:
        return f"step {step.step}: metrics.jsonl has {step.digest}, the shards give {digest}"
    return None


def _digest_errors(
    stream: TrainingStream,
    run: RunRecord,
    steps: Sequence[StepRecord],
    threads: int,
    sizes: Sequence[int] = (),
) -> list[str]:
    """A sentence for each step whose metric line does not follow from the shards."""
    found = []
    with (
        tqdm(total=len(steps), unit="step", desc="steps") as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        for sentence in pool.map(lambda step: _digest_error(stream, run, step, sizes), steps):
            bar.update()
            if sentence is not None:
                found.append(sentence)
    return found
