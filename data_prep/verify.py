"""Check a data set byte for byte, or prove which data a run was trained on.

    python data_prep/verify.py data/fineweb_edu
    python data_prep/verify.py data/fineweb_edu --run runs/gpt2 [--steps 100:200]
    python data_prep/verify.py data/web data/stories --run runs/mix

The first command compares every file with the manifest. The second does so with the shards that it
reads, recomputes the digest of each step from them and compares it with the run's metrics.jsonl:
every step that a checkpoint contains must have its line. This covers crashes, resumes and changes
of the number of GPUs. Of a mixture, whose sources are named in the order of the run, it also counts
the windows of each source and how far they ever were from the weights.

Exit code 0: everything agrees. 1: the run was trained on other data, or its record has a gap.
2: it could not be checked: a file is damaged (it is named), or the options do not fit together.
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_prep.audit.run_data import folders_named, open_run_data
from data_prep.audit.run_proof import prove_run
from data_prep.audit.run_record import parse_range, read_run
from data_prep.dataset.comparison import differing_files
from data_prep.dataset.documents import Documents
from data_prep.dataset.shards import DataSet, check_content, open_data_set
from data_prep.preparation.console import run_script
from storage.script_options import DataSets, parse_options
from storage.terminal.printable import printable

log = logging.getLogger("data_prep")  # not __name__, which is "__main__" in a script
_NOT_PROVEN = 1


@dataclass(frozen=True)
class VerifyOptions:
    """Check a data set byte for byte, or prove which data a run was trained on."""

    data: DataSets
    """Data set folder; several are checked one after the other. With --run all that it read."""
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
    files = [file for shard in shards for file in shard.files().items()]
    size = sum((data.folder / name).stat().st_size for name, _ in files)
    data.tokenizer()
    start = time.perf_counter()
    differing = differing_files(data, files, threads)
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
        f"{size:,}",
        seconds,
        size / 1e6 / seconds,
    )


def _show_sample(data: DataSet, count: int) -> None:
    """Decode and print `count` evenly spaced documents, each with its source file and row."""
    documents = Documents(data, "train")
    train, tokenizer = documents.shards, documents.tokenizer
    count, same = min(count, train.documents), 0
    refused = 0
    for index in range(count):
        document = index * train.documents // count
        ids = train.read_document(document)[1:].tolist()
        text = tokenizer.decode(ids)
        try:
            same += tokenizer.encode(text) == ids
        except ValueError:  # of a text that this tokenizer's pattern cannot cut
            refused += 1
        source, row = documents.source(document)
        log.info(
            "document %d, %s row %d, %d tokens\n%s\n",
            *(document, printable(source), row, len(ids), printable(text)),
        )
    cannot = f"; {refused} cannot be encoded again" if refused else ""
    log.info(
        "%d of %d documents give the same tokens when their text is encoded%s", same, count, cannot
    )


def verify(options: VerifyOptions) -> None:
    """Do what the options ask for; exit with code 1 if a run's data is not proven."""
    if options.run is None:
        sets, proven = [open_data_set(folder) for folder in folders_named(options.data)], True
        _verify_all(sets, options.threads)
    else:
        run = read_run(options.run)
        data = open_run_data(run, options.data)
        sets = [source.data for source in data.sources]
        proven = prove_run(data, run, options.steps, options.threads)
    if options.tokens:  # only after the files that it shows
        for one in sets:
            _show_sample(one, options.tokens)
    if not proven:
        sys.exit(_NOT_PROVEN)


def _verify_all(sets: Sequence[DataSet], threads: int) -> None:
    """Compare every data set with its manifest.

    Raises: ValueError with what is wrong, after all have been read.
    """
    wrong = []
    for data in sets:
        try:
            _verify_files(data, threads)
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))


def main() -> None:
    """Read the options and verify."""
    run_script(lambda: verify(parse_options(VerifyOptions, description=__doc__)))


if __name__ == "__main__":
    main()
