"""Make a data set from FineWeb-Edu, from the Hugging Face Hub or from local files.

    python data_prep/fineweb.py
    python data_prep/fineweb.py --source /data/fineweb-edu/sample/10BT
    python data_prep/fineweb.py --source s3://bucket/fineweb-edu/sample/10BT

Output: a data set folder for `train/main.py --data`. If it is interrupted, the same command
continues where it stopped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from data_prep.hub.chosen_files import FileChoice
from data_prep.hub.download import Downloader
from data_prep.hub.presets import HUB_PRESETS
from data_prep.preparation.cloud.source_copies import CopyOptions, opened_source
from data_prep.preparation.console import run_script
from data_prep.preparation.from_hub import HubDataset, make_from_hub
from data_prep.preparation.options import HubOptions
from data_prep.preparation.prepare import run_preparation
from storage.script_options import parse_options

_PRESET = HUB_PRESETS["fineweb-edu"]
REVISION = _PRESET.revision


@dataclass(frozen=True)
class FineWebOptions(HubOptions):
    """Tokenize FineWeb-Edu into a data set with checksums."""

    config: str = "sample-10BT"
    """sample-10BT, sample-100BT, sample-350BT, default (all), or a dump such as CC-MAIN-2024-10."""
    source: str | None = None
    """Parquet files of the data set: a folder, a glob, or a URL of fsspec of one.
    Default: download them from the Hub."""
    out: Path = Path("data/fineweb_edu")
    """Folder of the data set; must not exist yet. Downloads go to OUT.source beside it."""
    revision: str = REVISION
    """Commit, tag or branch of the data set on the Hub."""
    split: Literal["hash", "first"] = "hash"
    """How validation documents are chosen.
    hash: by a hash of the text, so that all copies of a document are on one side.
    first: the first documents."""
    stream: bool = False
    """Read the files over the network without saving them.
    The shards are the same, but no sha256 checks what is read."""
    val_fraction: tyro.conf.Suppress[float] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stream and (self.source is not None or self.keep_source):
            raise ValueError(
                f"stream with source={self.source} and keep_source={self.keep_source}; "
                "local files, or files to keep, are read without --stream"
            )


def prepare_fineweb(options: FineWebOptions, downloader: Downloader | None = None) -> None:
    """Prepare the local files that the options name, or else those of the Hub."""
    if options.source is not None:
        copying = CopyOptions.of(options, options.out)
        kept = options.kept_digests(options.out)
        with opened_source([options.source], copying, kept=kept) as source:
            run_preparation(source, options.out, options)
        return
    choice = FileChoice(options.config)
    dataset = HubDataset(
        _PRESET.repository,
        choice.name(_PRESET.repository),
        lambda hub, revision: _PRESET.list_files(hub, revision, choice),
        stream=options.stream,
    )
    make_from_hub(dataset, options.out, options, downloader)


def main() -> None:
    """Read the options and prepare."""
    options = parse_options(FineWebOptions, description=__doc__)
    run_script(lambda: prepare_fineweb(options))


if __name__ == "__main__":
    main()
