"""Make a data set from TinyStories, from the Hugging Face Hub or from local files.

    python data_prep/tinystories.py
    python data_prep/tinystories.py --version v2 --out data/tinystories_v2
    python data_prep/tinystories.py --train-files train.txt --val-files valid.txt

TinyStories defines its own validation stories, and they are used by default. Stories of whitespace
only are skipped. Output: a data set folder for `train/main.py --data`. If it is interrupted, the
same command continues where it stopped.
"""

from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Literal

import tyro

from data_prep.hub.download import Downloader
from data_prep.hub.listing import Hub, Listing
from data_prep.preparation.cloud.source_copies import CopyOptions, local_places
from data_prep.preparation.console import run_script
from data_prep.preparation.from_hub import HubDataset, make_from_hub
from data_prep.preparation.options import HubOptions
from data_prep.preparation.prepare import run_preparation
from data_prep.sources.file_digests import DigestFolder
from data_prep.sources.file_search import find_files
from data_prep.sources.file_source import FileSource, file_source
from storage.script_options import parse_options

_REPOSITORY = "roneneldan/TinyStories"
REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
# v1 was written by GPT-3.5 and GPT-4 (2.1 million stories), v2 by GPT-4 only (2.7 million).
_FOLDERS = {"v1": "data", "v2": ""}
_SUFFIXES = {"v1": ".parquet", "v2": ".txt"}
_PREFIXES = {"v1": "data/", "v2": "TinyStoriesV2-GPT4-"}
_VALIDATION = {"v1": "data/validation-*", "v2": "TinyStoriesV2-GPT4-valid.txt"}


@dataclass(frozen=True)
class TinyStoriesOptions(HubOptions):
    """Tokenize TinyStories into a data set with checksums."""

    version: Literal["v1", "v2"] = "v1"
    """v1: the parquet files of the data set. v2: its TinyStoriesV2-GPT4 text files."""
    train_files: tuple[str, ...] = ()
    """Training stories: files, folders or globs, also as URLs. Default: download them."""
    val_files: tuple[str, ...] = ()
    """With --train-files: validation stories."""
    out: Path = Path("data/tinystories")
    """Folder of the data set; must not exist yet. Downloads go to OUT.source beside it."""
    revision: str = REVISION
    """Commit, tag or branch of the data set on the Hub."""
    split: Literal["given", "hash", "first"] = "given"
    """How validation stories are chosen.
    given: as TinyStories defines them.
    hash: from all stories, by a hash of the text, so that all copies of a story are on one side.
    first: the first stories."""
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


def _list_version(hub: Hub, version: str, revision: str) -> Listing:
    """The files of a version. Raises: ValueError if there are none."""
    prefix, suffix = _PREFIXES[version], _SUFFIXES[version]
    listing = hub.list_files(
        _FOLDERS[version],
        lambda name: name.startswith(prefix) and name.endswith(suffix),
        revision,
    )
    if not listing.files:
        raise ValueError(
            f"{hub.repository} has no file {prefix}*{suffix} at {listing.commit}; "
            "use another --version or --revision"
        )
    return listing


def local_source(
    train: tuple[str, ...], val: tuple[str, ...], kept: DigestFolder | None = None
) -> FileSource:
    """A source of local files; those of `val` are validation."""
    source, validation = file_source([*train, *val], kept=kept), find_files(val).paths
    names = tuple(escape(path.relative_to(source.root).as_posix()) for path in validation)
    return replace(source, skip_blank=True, validation=names)


def prepare_tinystories(options: TinyStoriesOptions, downloader: Downloader | None = None) -> None:
    """Prepare the local files that the options name, or else those of the Hub."""
    if options.train_files:
        groups = (options.train_files, options.val_files)
        with local_places(groups, CopyOptions.of(options, options.out, None)) as places:
            train, val = places or groups
            source = local_source(train, val, options.kept_digests(options.out))
            run_preparation(source, options.out, options)
        return
    dataset = HubDataset(
        _REPOSITORY,
        f"{_REPOSITORY}/{options.version}",
        lambda hub, revision: _list_version(hub, options.version, revision),
        skip_blank=True,
        validation=(_VALIDATION[options.version],),
    )
    make_from_hub(dataset, options.out, options, downloader)


def main() -> None:
    """Read the options and prepare."""
    options = parse_options(TinyStoriesOptions, description=__doc__)
    run_script(lambda: prepare_tinystories(options))


if __name__ == "__main__":
    main()
