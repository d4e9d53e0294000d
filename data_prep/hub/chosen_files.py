"""Lists the files of one configuration and split of any repository of the Hub."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data_prep.hub.listing import Hub, Listing
from data_prep.hub.repository_layout import (
    Configuration,
    chosen_configuration,
    configurations_of_card,
    configurations_of_names,
    folder_of,
    matching,
    of_one_kind,
    shown,
    text_names,
)
from storage.terminal.quantities import counted

log = logging.getLogger(__name__)

_CONVERTED = "refs/convert/parquet"  # the branch with the Hub's own conversion of a data set
_KINDS = "parquet, JSON-lines or text files"


@dataclass(frozen=True)
class FileChoice:
    """Which files of a repository are read."""

    config: str | None = None
    """None: the only or the default configuration."""
    split: str = "train"
    val_split: str | None = None
    """A split of the repository that is the validation; None: it has none that is used."""
    files: tuple[str, ...] = ()
    """Patterns of names, in place of configuration and split."""

    def name(self, repository: str) -> str:
        """The name of these files of a repository, for the manifest."""
        if self.files:
            return f"{repository}/{','.join(self.files)}"
        split = () if self.split == "train" else (self.split,)
        named = "/".join((repository, *([self.config] if self.config else []), *split))
        return f"{named}+{self.val_split}" if self.val_split else named


def list_chosen(hub: Hub, revision: str, choice: FileChoice) -> Listing:
    """The chosen files at a revision.

    Raises: ValueError if there are none, naming what there is, or if the Hub cannot be reached.
    """
    commit = hub.resolve(revision)
    if choice.files:
        return hub.listing(commit, _by_patterns(hub, commit, choice.files))
    configurations = _named_by_card(hub, commit)
    if configurations:
        chosen = chosen_configuration(configurations, choice.config, hub.repository)
        entries = hub.entries(commit, chosen.in_folder())
    else:
        entries = hub.entries(commit)
        names = of_one_kind(text_names(entry["path"] for entry in entries))
        _check_any_text(hub.repository, names, entries)
        found = configurations_of_names(names)
        chosen = chosen_configuration(found, choice.config, hub.repository)
    train, validation = _names(hub.repository, chosen, choice, entries)
    wanted = {*train, *validation}
    listing = hub.listing(commit, [entry for entry in entries if entry["path"] in wanted])
    return Listing(listing.repository, listing.commit, listing.files, tuple(validation))


def _named_by_card(hub: Hub, commit: str) -> list[Configuration]:
    """The configurations that the README of the repository names; none if it names none."""
    for entry in hub.entries(commit, recursive=False):
        if entry["path"] == "README.md":
            return configurations_of_card(hub.text_of(entry, commit))
    return []


def _by_patterns(hub: Hub, commit: str, patterns: Sequence[str]) -> list[dict[str, Any]]:
    """What the Hub says of the files whose names match. Raises: ValueError if there are none."""
    patterns = [pattern.removeprefix("./") for pattern in patterns]
    entries = hub.entries(commit, folder_of(patterns))
    names = matching(text_names(entry["path"] for entry in entries), patterns)
    if not names:
        there = _shown_kinds(hub.entries(commit))
        raise ValueError(
            f"{hub.repository} has no {_KINDS} at {shown(patterns)} (it has {there}); give other "
            "--files, such as 'data/*.parquet'; ** stands for any folders"
        )
    return [entry for entry in entries if entry["path"] in set(names)]


def _names(
    repository: str, chosen: Configuration, choice: FileChoice, entries: Sequence[dict[str, Any]]
) -> tuple[list[str], list[str]]:
    """The names of the files to train and to validate with.

    Raises: ValueError if there are none.
    """
    names = text_names(entry["path"] for entry in entries)
    splits = chosen.splits(names)
    of = f"{repository}, configuration {chosen.name}"
    for option, split in (("split", choice.split), ("val_split", choice.val_split)):
        if split is not None and split not in splits:
            raise ValueError(f"{option}={split} is not one of {of}, which has {shown([*splits])}")
    train = of_one_kind(splits[choice.split])
    validation = of_one_kind(splits[choice.val_split]) if choice.val_split else []
    for split, found in ((choice.split, train), (choice.val_split, validation)):
        if split is not None and not found:
            where = shown((chosen.patterns or {}).get(split, ()))
            raise ValueError(
                f"split {split} of {of} is at {where}, where there is no {_KINDS}; name the files "
                f"with --files, or try the Hub's conversion: --revision {_CONVERTED}"
            )
    if set(train) & set(validation):
        raise ValueError(
            f"split={choice.split} and val_split={choice.val_split} of {of} are the same files; "
            "leave out --val-split, and validation is chosen by hash"
        )
    counts = (f"{split} {counted(len(files), 'file')}" for split, files in splits.items())
    log.info("%s: %s", of, ", ".join(counts))
    return train, validation


def _check_any_text(what: str, names: Sequence[str], entries: Sequence[dict[str, Any]]) -> None:
    """Raises: ValueError if there are no names of files with text."""
    if not names:
        raise ValueError(
            f"{what} has no {_KINDS} (it has {_shown_kinds(entries)}); the Hub's conversion to "
            f"parquet may have them: --revision {_CONVERTED}"
        )


def _shown_kinds(entries: Sequence[dict[str, Any]]) -> str:
    suffixes = {PurePosixPath(entry["path"]).suffix or "no suffix" for entry in entries}
    return f"{counted(len(entries), 'file')}: {shown(sorted(suffixes))}" if entries else "no file"
