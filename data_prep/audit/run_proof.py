"""The proof of a run's training data: the digest of each step, computed from the shards."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from data_prep.audit.continuity import gaps_and_overlaps
from data_prep.audit.run_data import (
    check_run_data,
    discarded_streams,
    start_problems,
    weight_starts_of,
)
from data_prep.audit.run_record import RunRecord, StepRecord, parse_range
from data_prep.audit.shares_read import (
    read_epochs,
    read_shares,
    share_lines,
    share_problems,
    shares_error,
)
from data_prep.dataset.comparison import differing_files
from data_prep.dataset.shards import DataSet
from data_prep.order.training_data import TrainingData
from data_prep.order.windows import WindowStream, read_windows, windows_digest

log = logging.getLogger(__name__)
_DIFFERENCES_SHOWN = 10


def prove_run(data: TrainingData, run: RunRecord, steps: str | None, threads: int) -> bool:
    """Whether the run read the windows that follow from its data, weights, seed and settings.

    Logs the result and the first problems.
    Raises: ValueError if the run has other data, or if a shard that the proof reads differs from
    the manifest.
    """
    check_run_data(run, data)
    first, stop = parse_range(steps)
    # A run that has lost the lines of its steps is not proven; of other steps nothing can be said.
    chosen = run.steps_between(first, stop) if first < run.done else run.steps_in(steps)
    discarded = [s for s in run.discarded if first <= s.step and (stop is None or s.step < stop)]
    starts = weight_starts_of(run)
    # Not the stored indexes of the epochs: what the proof reads is compared with the manifest.
    stream = data.stream(run.seed, starts, stored_indexes=False)
    # Nothing records which settings were in force when a discarded step was done: accept any.
    sizes = [run.windows, *(settings.windows for _, settings in run.earlier)]
    lost = discarded_streams(run, data, stream) if discarded else []
    every = None if steps is None else [(stream, chosen), *((other, discarded) for other in lost)]
    _check_shards(data, run, every, threads)
    start = time.perf_counter()
    differing = _digest_errors([stream], run, chosen, threads)
    discarded_errors = _digest_errors(lost, run, discarded, threads, sizes) if discarded else []
    seconds = time.perf_counter() - start
    breaks = gaps_and_overlaps(run, chosen, first, stop)
    _log_result(data, run, (chosen, discarded), (len(differing), len(discarded_errors)), seconds)
    if chosen:
        log.info(
            "windows %d to %d: %s",
            chosen[0].first_window,
            chosen[-1].stop_window - 1,
            f"{len(breaks)} breaks" if breaks else "no gap, no overlap",
        )
    other_starts = start_problems(run, starts)
    shares = read_shares(data, stream, starts, chosen) if data.is_mixture else []
    if shares:
        epochs = read_epochs(run, stream, shares[-1].stop)
        log.info("%s", "\n".join(share_lines(data, run, stream, shares, epochs)))
        breaks += share_problems(data, shares, epochs)
    lost_errors = (f"discarded {error}" for error in discarded_errors)
    _log_problems([*other_starts, *differing, *lost_errors, *breaks])
    if breaks and run.damaged_lines:
        log.info("metrics.jsonl has damaged lines: %s", ", ".join(map(str, run.damaged_lines)))
    return not (differing or discarded_errors or breaks or other_starts)


def _log_result(
    data: TrainingData,
    run: RunRecord,
    steps: tuple[Sequence[StepRecord], Sequence[StepRecord]],
    differing: tuple[int, int],
    seconds: float,
) -> None:
    """Say how many steps of the run agree, and how many that were lost and done again."""
    chosen, discarded = steps
    what = f"{len(data.sources)} data sets" if data.is_mixture else "data set"
    log.info(
        "%s: %s %s, seed %d, windows of %d tokens",
        *(run.folder, what, data.fingerprint[:16], run.seed, run.context_length),
    )
    if chosen:
        tokens = run.context_length * sum(step.windows for step in (*chosen, *discarded))
        speed = f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s"
        log.info(
            "steps %d to %d: %d of %d agree with the shards (%s)",
            *(chosen[0].step, chosen[-1].step, len(chosen) - differing[0], len(chosen), speed),
        )
    if discarded:
        agree = len(discarded) - differing[1]
        log.info("%d steps were lost in a stop and done again: %d agree", len(discarded), agree)


def _log_problems(problems: Sequence[str]) -> None:
    for problem in problems[:_DIFFERENCES_SHOWN]:
        log.info("DIFFERS  %s", problem)
    if len(problems) > _DIFFERENCES_SHOWN:
        log.info("... and %d more", len(problems) - _DIFFERENCES_SHOWN)


def _check_shards(
    data: TrainingData,
    run: RunRecord,
    read: Sequence[tuple[WindowStream, Sequence[StepRecord]]] | None,
    threads: int,
) -> None:
    """Compare what a proof reads with the manifests: lengths of all shards, tokens of some.

    Those are the shards that these steps have read; without steps they are all of training.
    Raises: ValueError naming each file that differs.
    """
    lengths, tokens = [], []
    for source in data.sources:
        shards = source.manifest.train.shards
        # The places of documents follow from the lengths.
        lengths.append([(f"{shard.name}.lengths.npy", shard.lengths_sha256) for shard in shards])
    _raise_if_differing(data, lengths, threads)
    for number, source in enumerate(data.sources):
        shards = source.manifest.train.shards
        numbers = range(len(shards))
        if read is not None:
            numbers = _shards_of(source.data, number, run.context_length, read)
        tokens.append([(f"{shards[n].name}.npy", shards[n].tokens_sha256) for n in numbers])
    _raise_if_differing(data, tokens, threads)


def _raise_if_differing(
    data: TrainingData, files: Sequence[Sequence[tuple[str, str]]], threads: int
) -> None:
    """Raises: ValueError if one of the files of each source differs from its manifest."""
    differing = [
        sentence
        for source, own in zip(data.sources, files, strict=True)
        for sentence in differing_files(source.data, own, threads)
    ]
    if differing:
        raise ValueError(
            f"{len(differing)} of {sum(map(len, files))} files that the proof reads differ from "
            "the manifest of the data set, so nothing can be proven with them; copy them again or "
            "prepare the data set again, then run this again: it names the steps that had other "
            "tokens\n" + "\n".join(differing)
        )


def _shards_of(
    data: DataSet,
    source: int,
    length: int,
    read: Sequence[tuple[WindowStream, Sequence[StepRecord]]],
) -> list[int]:
    """The numbers of a source's training shards with a document that one of the steps read."""
    stops = np.cumsum([shard.documents for shard in data.manifest.train.shards])
    found: set[int] = set()
    for stream, step in ((stream, step) for stream, steps in read for step in steps):
        first = int(stream.counts(step.first_window)[source])
        count = int(stream.counts(step.stop_window)[source]) - first
        if not count:
            continue
        for piece in stream.streams[source].pieces(first * length, count * length + 1):
            found |= set(np.searchsorted(stops, piece.documents, side="right").tolist())
            if len(found) == len(stops):
                return sorted(found)
    return sorted(found)


def _digest_error(
    streams: Sequence[WindowStream], run: RunRecord, step: StepRecord, sizes: Sequence[int] = ()
) -> str | None:
    """What is wrong with the metric line of a step; None if its digest follows from the shards.

    `streams` are the orders that it may have read, and `sizes` the numbers of windows that it may
    have; default: the one in force at that step.
    """
    expected = run.settings_at(step.step).windows
    if step.windows not in (sizes or (expected,)):
        return f"step {step.step}: {step.windows} windows, the configuration says {expected}"
    digest = ""
    for stream in streams:
        windows = read_windows(stream, step.first_window, step.windows, run.context_length)
        digest = f"{windows_digest(step.first_window, windows):016x}"
        if digest == step.digest:
            return shares_error(stream, run, step)
    return f"step {step.step}: metrics.jsonl has {step.digest}, the shards give {digest}"


def _digest_errors(
    streams: Sequence[WindowStream],
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
        for sentence in pool.map(lambda step: _digest_error(streams, run, step, sizes), steps):
            bar.update()
            if sentence is not None:
                found.append(sentence)
    return found
