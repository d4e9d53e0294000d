"""Check a data set byte for byte, or prove which data a run was trained on.

    python data_prep/verify.py data/fineweb_edu
    python data_prep/verify.py data/fineweb_edu --run runs/gpt2 [--steps 100:200]

The first command compares every file with the manifest. The second recomputes the digest of each
step from the shards and compares it with the run's metrics.jsonl. This covers crashes, resumes and
changes of the number of GPUs.

Exit code 0: everything agrees. 1: the run was trained on other data, or its record has a gap.
2: a file is damaged (it is named), or the options do not fit together.
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from data_prep.audit.run_record import (
    RunRecord,
    StepRecord,
    gaps_and_overlaps,
    parse_range,
    read_run,
)
from data_prep.audit.tracing import Tracer
from data_prep.dataset.shards import DataSet, check_content, open_data_set
from data_prep.order.training_stream import TrainingStream, read_windows, windows_digest
from data_prep.preparation.console import run_script
from storage.digest import file_sha256

log = logging.getLogger("data_prep")  # not __name__, which is "__main__" in a script
_NOT_PROVEN = 1
_DIFFERENCES_SHOWN = 10


@dataclass(frozen=True)
class VerifyOptions:
    """Check a data set byte for byte, or prove which data a run was trained on."""

    data: tyro.conf.Positional[Path]
    """Data set folder."""
    run: Path | None = None
    """Run folder. Recompute the digest of each of its steps, instead of checking the files."""
    steps: str | None = None
    """With --run: check only the steps a:b, b not included; either may be left out."""
    tokens: int = 0
    """Decode N documents and print their text, source file and row."""
    threads: int = min(8, os.cpu_count() or 1)
    """Files, or steps, that are checked at the same time."""

    def __post_init__(self) -> None:
        parse_range(self.steps)
        if self.steps is not None and self.run is None:
            raise ValueError(f"--steps {self.steps} needs --run: which run's steps?")
        if self.threads < 1 or self.tokens < 0:
            raise ValueError(
                f"threads={self.threads}, tokens={self.tokens}: use 1 or more, and 0 or more"
            )


def _verify_files(data: DataSet, threads: int) -> None:
    """Compare every byte of the data set with its manifest.

    Raises: ValueError naming every file that differs.
    """
    shards = (*data.manifest.train.shards, *data.manifest.val.shards)
    files = [(data.folder / name, digest) for s in shards for name, digest in s.files().items()]
    sizes = [path.stat().st_size for path, _ in files]
    data.tokenizer()
    differing = []
    start = time.perf_counter()
    with (
        tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="bytes") as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        digests = pool.map(file_sha256, [path for path, _ in files])
        for (path, expected), size, found in zip(files, sizes, digests, strict=True):
            bar.update(size)
            if found != expected:
                differing.append(f"{path} has sha256 {found}, the manifest says {expected}")
    if differing:
        raise ValueError(
            f"{len(differing)} of {len(files)} files differ; copy them again or prepare the data "
            "set again:\n" + "\n".join(differing)
        )
    seconds = time.perf_counter() - start
    # Digests show damage. This also finds invalid content with a manifest made to match it.
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda shard: check_content(data, shard), shards))
    log.info(
        "%s: all %d files match the manifest: %s bytes in %.1f s, %.0f MB/s",
        data.folder,
        len(files),
        f"{sum(sizes):,}",
        seconds,
        sum(sizes) / 1e6 / seconds,
    )


def _show_sample(data: DataSet, count: int) -> None:
    """Decode and print `count` evenly spaced documents, each with its source file and row."""
    train = data.split("train")
    tracer = Tracer(data)
    count, same = min(count, train.documents), 0
    for index in range(count):
        document = index * train.documents // count
        ids = train.read_document(document)[1:].tolist()
        text = tracer.tokenizer.decode(ids)
        same += tracer.tokenizer.encode(text) == ids
        source, row = tracer.source(document)
        log.info("document %d, %s row %d, %d tokens\n%s\n", document, source, row, len(ids), text)
    log.info("%d of %d documents give the same tokens when their text is encoded", same, count)


def _digest_error(
    stream: TrainingStream, run: RunRecord, step: StepRecord, sizes: Sequence[int] = ()
) -> str | None:
    """What is wrong with the metric line of a step; None if its digest follows from the shards.

    `sizes` are the numbers of windows that it may have; default: the one in force at that step.
    """
    expected = run.settings_at(step.step).windows
    if step.windows not in (sizes or (expected,)):
        return f"step {step.step}: {step.windows} windows, the configuration says {expected}"
    windows = read_windows(stream, step.first_window, step.windows, run.context_length)
    digest = f"{windows_digest(step.first_window, windows):016x}"
    if digest != step.digest:
        return f"step {step.step}: metrics.jsonl has {step.digest}, the shards give {digest}"
    return None


def _digest_errors(
    data: DataSet,
    run: RunRecord,
    steps: Sequence[StepRecord],
    threads: int,
    sizes: Sequence[int] = (),
) -> list[str]:
    """A sentence for each step whose metric line does not follow from the shards."""
    stream = TrainingStream(data.split("train"), run.seed)
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


def prove_run(data: DataSet, run: RunRecord, steps: str | None, threads: int) -> bool:
    """Whether the run read the windows that follow from its data set, seed and settings.

    Logs the result and the first problems.
    """
    run.check_data(data)
    chosen = run.steps_in(steps)
    first, stop = parse_range(steps)
    discarded = [s for s in run.discarded if first <= s.step and (stop is None or s.step < stop)]
    start = time.perf_counter()
    differing = _digest_errors(data, run, chosen, threads)
    # Nothing records which settings were in force when a discarded step was done: accept any.
    sizes = [run.windows, *(settings.windows for _, settings in run.earlier)]
    discarded_errors = _digest_errors(data, run, discarded, threads, sizes) if discarded else []
    seconds = time.perf_counter() - start
    breaks = gaps_and_overlaps(run, chosen, first)
    tokens = run.context_length * sum(step.windows for step in (*chosen, *discarded))
    log.info(
        "%s: data set %s, seed %d, windows of %d tokens",
        run.folder,
        data.fingerprint[:16],
        run.seed,
        run.context_length,
    )
    log.info(
        "steps %d to %d: %d of %d agree with the shards (%s tokens in %.1f s, %s tokens/s)",
        chosen[0].step,
        chosen[-1].step,
        len(chosen) - len(differing),
        len(chosen),
        f"{tokens:,}",
        seconds,
        f"{tokens / seconds:,.0f}",
    )
    if discarded:
        agree = len(discarded) - len(discarded_errors)
        log.info("%d steps were lost in a stop and done again: %d agree", len(discarded), agree)
    log.info(
        "windows %d to %d: %s",
        chosen[0].first_window,
        chosen[-1].stop_window - 1,
        f"{len(breaks)} breaks" if breaks else "no gap, no overlap",
    )
    problems = [*differing, *(f"discarded {error}" for error in discarded_errors), *breaks]
    for problem in problems[:_DIFFERENCES_SHOWN]:
        log.info("DIFFERS  %s", problem)
    if len(problems) > _DIFFERENCES_SHOWN:
        log.info("... and %d more", len(problems) - _DIFFERENCES_SHOWN)
    return not problems


def verify(options: VerifyOptions) -> None:
    """Do what the options ask for; exit with code 1 if a run's data is not proven."""
    data = open_data_set(options.data)
    if options.run is None:
        _verify_files(data, options.threads)
    if options.tokens:
        _show_sample(data, options.tokens)
    if options.run is not None:
        run = read_run(options.run)
        if not prove_run(data, run, options.steps, options.threads):
            sys.exit(_NOT_PROVEN)


def main() -> None:
    """Read the options and verify."""
    run_script(lambda: verify(tyro.cli(VerifyOptions, description=__doc__)))


if __name__ == "__main__":
    main()
