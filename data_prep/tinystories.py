"""Make a data set from TinyStories, downloaded from the Hugging Face Hub or already at hand.

    python data_prep/tinystories.py
    python data_prep/tinystories.py --version v2 --out data/tinystories_v2
    python data_prep/tinystories.py --train-files train.txt --val-files valid.txt

The data set's own validation stories are validation; stories of whitespace alone are skipped.
Out: a data set folder for `train/main.py --data`. An interrupted run goes on where it stopped.
"""

from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Literal

import tyro

from data_prep.hub.download import Downloader
from data_prep.hub.listing import Hub, Listing
from data_prep.preparation.console import run_script
from data_prep.preparation.from_hub import HubDataset, make_from_hub
from data_prep.preparation.options import HubOptions
from data_prep.preparation.prepare import make
from data_prep.sources.file_source import FileSource, file_source

REPOSITORY = "roneneldan/TinyStories"
REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
# v1 is by GPT-3.5 and GPT-4 (2.1 million stories), v2 by GPT-4 alone (2.7 million).
FOLDERS = {"v1": "data", "v2": ""}
SUFFIXES = {"v1": ".parquet", "v2": ".txt"}
PREFIXES = {"v1": "data/", "v2": "TinyStoriesV2-GPT4-"}
VALIDATION = {"v1": "data/validation-*", "v2": "TinyStoriesV2-GPT4-valid.txt"}


@dataclass(frozen=True)
class TinyStoriesOptions(HubOptions):
    """Tokenize TinyStories into a data set of verified shards."""

    version: Literal["v1", "v2"] = "v1"
    """v1 is the data set's parquet files, v2 its TinyStoriesV2-GPT4 text files."""
    train_files: tuple[str, ...] = ()
    """Files, folders or globs of the stories to train on; by default they come from the Hub."""
    val_files: tuple[str, ...] = ()
    """With --train-files: those that are validation."""
    out: Path = Path("data/tinystories")
    """The data set's folder; must not exist yet. Downloads come to OUT.source beside it."""
    revision: str = REVISION
    """Commit, tag or branch of the data set on the Hub."""
    split: Literal["given", "hash", "first"] = "given"
    """Validation is what the data set gives as such, is chosen by a hash of the text from all
    stories (no copy of a story is on both sides), or is the first stories."""
    val_fraction: tyro.conf.Suppress[float] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.train_files) != bool(self.val_files):
            raise ValueError(
                f"train_files={self.train_files} and val_files={self.val_files}; give both or none"
            )
        for name in ("val_tokens", "max_documents"):
            if self.split == "given" and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no meaning with split=given; "
                    "use --split hash"
                )


def list_version(hub: Hub, version: str, revision: str) -> Listing:
    """The files of a version. Raises: ValueError if there are none."""
    prefix, suffix = PREFIXES[version], SUFFIXES[version]
    listing = hub.list_files(
        FOLDERS[version],
        lambda name: name.startswith(prefix) and name.endswith(suffix),
        revision,
    )
    if not listing.files:
        raise ValueError(
            f"{hub.repository} has no file {prefix}*{suffix} at {listing.commit}; "
            "use another --version or --revision"
        )
    return listing


def local_source(train: tuple[str, ...], val: tuple[str, ...]) -> FileSource:
    """The named files, of which those of `val` are validation."""
    source, validation = file_source([*train, *val]), file_source(val)
    paths = (validation.root / file.name for file in validation.files)
    names = tuple(escape(path.relative_to(source.root).as_posix()) for path in paths)
    return replace(source, skip_blank=True, validation=names)


def run(options: TinyStoriesOptions, downloader: Downloader | None = None) -> None:
    """Prepare the named files, or those of the Hub."""
    if options.train_files:
        make(local_source(options.train_files, options.val_files), options.out, options)
        return
    wanted = HubDataset(
        REPOSITORY,
        f"{REPOSITORY}/{options.version}",
        lambda hub, revision: list_version(hub, options.version, revision),
        skip_blank=True,
        validation=(VALIDATION[options.version],),
    )
    make_from_hub(wanted, options.out, options, downloader)


def main() -> None:
    """Read the options and prepare."""
    options = tyro.cli(TinyStoriesOptions, description=__doc__)
    run_script(lambda: run(options))


if __name__ == "__main__":
    main()
