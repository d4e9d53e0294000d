"""Check a data set byte for byte, or prove what a run was fed.

    python data_prep/verify.py data/fineweb_edu
    python data_prep/verify.py data/fineweb_edu --run runs/gpt2 [--steps 100:200]

The first compares every file with the manifest. The second recomputes the digest of each step from
the shards and compares it with the run's metrics.jsonl: over crashes, resumes and other numbers of
GPUs. Exit code 0: everything agrees; 1: the run was fed something else, or its record has a gap;
2: a file is damaged (it is named), or the command does not make sense.
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

log = logging.getLogger("data_prep")  # also where this file runs as a script
NOT_PROVEN = 1
DIFFERENCES_SHOWN = 10


@dataclass(frozen=True)
class VerifyOptions:
    """Check a data set byte for byte, or prove what a run was fed."""

    data: tyro.conf.Positional[Path]
    """Data set folder."""
    run: Path | None = None
    """Run folder: recompute what each of its steps was fed, instead of checking the files."""
    steps: str | None = None
    """With --run: only the steps a:b, from a up to, not including, b; either may be left out."""
    tokens: int = 0
    """Decode so many documents and show text, source file and row."""
    threads: int = min(8, os.cpu_count() or 1)
    """Files, or steps, in work at once."""

    def __post_init__(self) -> None:
        parse_range(self.steps)
        if self.steps is not None and self.run is None:
            raise ValueError(f"--steps {self.steps} needs --run: which run's steps?")
        if self.threads < 1 or self.tokens < 0:
            raise ValueError(
                f"threads={self.threads}, tokens={self.tokens}: use 1 or more, and 0 or more"
            )


def verify_files(data: DataSet, threads: int) -> None:
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
        for (path, wanted), size, found in zip(files, sizes, digests, strict=True):
            bar.update(size)
            if found != wanted:
                differing.append(f"{path} has sha256 {found}, the manifest says {wanted}")
    if differing:
        raise ValueError(
            f"{len(differing)} of {len(files)} files differ; copy them again or prepare the data "
            "set again:\n" + "\n".join(differing)
        )
    seconds = time.perf_counter() - start
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda shard: check_content(data, shard), shards))
    log.info(
        "%s: all %d files are as the manifest says: %s bytes in %.1f s, %.0f MB/s",
        data.folder,
        len(files),
        f"{sum(sizes):,}",
        seconds,
        sum(sizes) / 1e6 / seconds,
    )


def show_sample(data: DataSet, count: int) -> None:
    """Decode `count` documents, evenly spread, and say where each came from."""
    train = data.split("train")
    tracer = Tracer(data)
    count, alike = min(count, train.documents), 0
    for turn in range(count):
        document = turn * train.documents // count
        ids = train.read_document(document)[1:].tolist()
        text = tracer.tokenizer.decode(ids)
        alike += tracer.tokenizer.encode(text) == ids
        source, row = tracer.source(document)
        log.info("document %d, %s row %d, %d tokens\n%s\n", document, source, row, len(ids), text)
    log.info("%d of %d documents give the same tokens when their text is encoded", alike, count)


def difference(
    stream: TrainingStream, run: RunRecord, step: StepRecord, sizes: Sequence[int] = ()
) -> str | None:
    """What is wrong with a step's line, if anything: its digest is recomputed from the shards.

    `sizes` are the numbers of windows that it may have, by default what held at that step.
    """
    wanted = run.at(step.step).windows
    if step.windows not in (sizes or (wanted,)):
        return f"step {step.step}: {step.windows} windows, the configuration says {wanted}"
    windows = read_windows(stream, step.first_window, step.windows, run.context_length)
    digest = f"{windows_digest(step.first_window, windows):016x}"
    if digest != step.digest:
        return f"step {step.step}: the line says {step.digest}, the shards give {digest}"
    return None


def differences(
    data: DataSet,
    run: RunRecord,
    steps: Sequence[StepRecord],
    threads: int,
    sizes: Sequence[int] = (),
) -> list[str]:
    """A sentence for each step whose line is not what the shards give."""
    stream = TrainingStream(data.split("train"), run.seed)
    found = []
    with (
        tqdm(total=len(steps), unit="step", desc="steps") as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        for sentence in pool.map(lambda step: difference(stream, run, step, sizes), steps):
            bar.update()
            if sentence is not None:
                found.append(sentence)
    return found


def prove_run(data: DataSet, run: RunRecord, steps: str | None, threads: int) -> bool:
    """Whether the run was fed what the shards, its seed and its window length say; tells all."""
    run.check_data(data)
    chosen = run.chosen(steps)
    first, stop = parse_range(steps)
    again = [s for s in run.discarded if first <= s.step and (stop is None or s.step < stop)]
    start = time.perf_counter()
    differing = differences(data, run, chosen, threads)
    sizes = [run.windows, *(held.windows for _, held in run.before)]  # which held then is not kept
    redone = differences(data, run, again, threads, sizes) if again else []
    seconds = time.perf_counter() - start
    broken = gaps_and_overlaps(run, chosen, first)
    tokens = run.context_length * sum(step.windows for step in (*chosen, *again))
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
    if again:
        agree = len(again) - len(redone)
        log.info("%d steps were lost by a stop and done again: %d agree", len(again), agree)
    log.info(
        "windows %d to %d: %s",
        chosen[0].first_window,
        chosen[-1].stop_window - 1,
        f"{len(broken)} breaks" if broken else "no gap, no overlap",
    )
    problems = [*differing, *(f"discarded {line}" for line in redone), *broken]
    for problem in problems[:DIFFERENCES_SHOWN]:
        log.info("DIFFERS  %s", problem)
    if len(problems) > DIFFERENCES_SHOWN:
        log.info("... and %d more", len(problems) - DIFFERENCES_SHOWN)
    return not problems


def verify(options: VerifyOptions) -> None:
    """Do what the options ask; leaves with exit code 1 if a run is not proven."""
    data = open_data_set(options.data)
    if options.run is None:
        verify_files(data, options.threads)
    if options.tokens:
        show_sample(data, options.tokens)
    if options.run is not None:
        run = read_run(options.run)
        if not prove_run(data, run, options.steps, options.threads):
            sys.exit(NOT_PROVEN)


def main() -> None:
    """Read the options and verify."""
    run_script(lambda: verify(tyro.cli(VerifyOptions, description=__doc__)))


if __name__ == "__main__":
    main()
