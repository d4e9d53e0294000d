"""Make a data set from FineWeb-Edu, downloaded from the Hugging Face Hub or already at hand.

    python data_prep/fineweb.py
    python data_prep/fineweb.py --source /data/fineweb-edu/sample/10BT

Out: a data set folder for `train/main.py --data`. An interrupted run goes on where it stopped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from data_prep.console import run_script
from data_prep.hub import is_commit, list_files, source_id
from data_prep.prepare import PrepareOptions, finished_data_set, prepare
from data_prep.shards import DataSet
from data_prep.sources import FileSource, file_source
from data_prep.tokenizer import gpt2_tokenizer

REPOSITORY = "HuggingFaceFW/fineweb-edu"
REVISION = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"


@dataclass(frozen=True)
class FineWebOptions(PrepareOptions):
    """Tokenize FineWeb-Edu into a data set of verified shards."""

    config: str = "sample-10BT"
    """sample-10BT, sample-100BT, sample-350BT, default, or a dump such as CC-MAIN-2024-10."""
    source: str | None = None
    """A folder or glob of the same parquet files; by default they come from the Hub."""
    out: Path = Path("data/fineweb_edu")
    """The data set's folder; must not exist yet. Downloads lie beside it, in OUT.source."""
    revision: str = REVISION
    """Commit, tag or branch of the data set on the Hub."""
    split: Literal["hash", "first"] = "hash"
    """Validation is chosen by a hash of the text (no copy of a document is on both sides), or is
    the first documents."""
    val_fraction: tyro.conf.Suppress[float] = 0.1


def run(options: FineWebOptions) -> DataSet:
    """Download if need be, then prepare."""
    if options.source is not None:
        return prepare(file_source([options.source]), options.out, options)
    folder = options.out.with_name(f"{options.out.name}.source")
    if is_commit(options.revision):
        # Known without a word to the Hub: a pinned commit never changes.
        wanted = FileSource(source_id(REPOSITORY, options.config), options.revision, folder, ())
        finished = finished_data_set(
            options.out,
            {**options.settings(), **wanted.settings()},
            gpt2_tokenizer(),
            lambda found: (found.id, found.revision) == (wanted.id, wanted.revision),
        )
        if finished is not None:
            return finished
    files = list_files(REPOSITORY, options.config, options.revision)
    return prepare(files.download(folder, options.max_documents), options.out, options)


def main() -> None:
    """Read the options and prepare."""
    options = tyro.cli(FineWebOptions, description=__doc__)
    run_script(lambda: run(options))


if __name__ == "__main__":
    main()
