"""Which files of a repository are which configuration and split, by the rules of `datasets`.

First the `configs` in the YAML head of its README, then the names of files and folders. Other than
for `datasets`, CONFIG/train/0000.parquet and CONFIG/train-00000-of-00005.parquet are
configurations without a README too, and not one mixture of all.
"""

import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml
from fsspec.utils import glob_translate

from data_prep.sources.formats import format_of

_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # in C, where PyYAML was built with it
_NAMES_SHOWN = 20
_ALL = "default"  # the configuration of a repository that names none
_HEAD = re.compile(r"\s*---\r?\n(.*?)\r?\n---", re.DOTALL)
_NO_DATA = re.compile(  # settings of a data set, and what is beside it
    r"config\.json|dataset_(info|infos|dict)\.json|(requirements|readme|license)\.txt",
    re.IGNORECASE,
)
# As `datasets` finds splits that no README names (datasets/data_files.py of 5.2.0).
_SHARDED = re.compile(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SEPARATORS = "-._ 0-9"
_IN_FOLDERS = ("**/{k}/**", "**/{k}[{s}]*/**", "**/*[{s}]{k}/**", "**/*[{s}]{k}[{s}]*/**")
_IN_NAMES = ("**/{k}[{s}]*", "**/*[{s}]{k}[{s}]*")
# Configurations that only folders name: those of the Hub's conversion to parquet, and others.
_CONVERTED = re.compile(r"([^/]+)/([^/]+)/\d{4}\.parquet")
_FOLDERS_OF_SPLITS = re.compile(r"(?!data/)([^/]+)/([^/]+?)-\d{5}-of-\d{5}[^/]*\.[^/]*")

_Splits = dict[str, list[str]]
"""The names of the files of each split."""


@dataclass(frozen=True)
class Configuration:
    """One configuration of a README: its name, and where its files are."""

    name: str
    patterns: Mapping[str, Sequence[str]] | None
    """Of the files of each split; None: as the names of files and folders say."""
    folder: str = ""
    """All of it is below this folder."""
    is_default: bool = False

    def splits(self, names: Sequence[str]) -> _Splits:
        """The files of each split, from the names of all files of the repository."""
        if self.patterns is None:
            prefix = f"{self.folder}/" if self.folder else ""
            below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            found = _splits_by_names(below)
            return {key: [prefix + name for name in files] for key, files in found.items()}
        return {split: matching(names, found) for split, found in self.patterns.items()}

    def in_folder(self) -> str:
        """The folder that all its files are in; "" if that is not known without a listing."""
        patterns = [one for found in (self.patterns or {}).values() for one in found]
        return folder_of(patterns) if self.patterns is not None else self.folder


def configurations_of_card(card: str) -> list[Configuration]:
    """The configurations in the YAML head of a README; none if it names none.

    Raises: ValueError if they do not say where their files are in a known way.
    """
    head = _HEAD.match(card)
    try:
        # All values as texts: `no` is a language, and a date may be one that there is not.
        found = yaml.load(head[1], _LOADER) if head else None
    except (yaml.YAMLError, RecursionError):
        found = None
    configs = found.get("configs") if isinstance(found, dict) else None
    entries = configs if isinstance(configs, list) else []
    return [_configuration(entry) for entry in entries if isinstance(entry, dict)]


def _configuration(entry: dict[str, Any]) -> Configuration:
    name, folder = str(entry.get("config_name", _ALL)), entry.get("data_dir")
    folder = str(PurePosixPath(folder)) if isinstance(folder, str) else ""
    folder = "" if folder == "." else folder
    patterns = None
    if "data_files" in entry:
        patterns = {
            split: [_placed(pattern, folder, name) for pattern in found]
            for split, found in _patterns(entry["data_files"], name).items()
        }
    return Configuration(name, patterns, folder, str(entry.get("default")).lower() == "true")


def _patterns(found: Any, name: str) -> dict[str, list[str]]:
    """The patterns of each split, in any of the forms that `datasets` knows."""
    if isinstance(found, str):
        found = [found]
    if isinstance(found, dict):
        splits = [(split, path) for split, path in found.items()]
    elif isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        splits = [(entry.get("split"), entry.get("path")) for entry in found]
    else:
        splits = [("train", found)]
    patterns = {str(split): [path] if isinstance(path, str) else path for split, path in splits}
    for paths in patterns.values():
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError(
                f"the README gives data_files={reprlib.repr(found)} for the configuration {name}, "
                "which is no list of splits and paths; name the files with --files"
            )
    return patterns


def _placed(pattern: str, folder: str, name: str) -> str:
    if "://" in pattern:
        raise ValueError(
            f"the files of the configuration {name} are elsewhere ({pattern[:200]}); download "
            "them, and give them to data_prep/text.py"
        )
    path = str(PurePosixPath(pattern.lstrip("/")))
    return f"{folder}/{path}" if folder else path


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match any of the patterns: * does not cross a /, and ** does."""
    found: set[str] = set()
    for pattern in patterns:
        found |= set(filter(re.compile(glob_translate(pattern)).fullmatch, names))
    return sorted(found)


def folder_of(patterns: Sequence[str]) -> str:
    """The folder that all files are in that patterns can match; "" for the whole repository."""
    parents = [PurePosixPath(pattern).parent.parts for pattern in patterns]
    known: list[str] = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1 or re.search(r"[*?\[]", parts[0]):
            break
        known.append(parts[0])
    return "/".join(known)


def text_names(paths: Iterable[str]) -> list[str]:
    """The names of the files that can hold records, sorted; hidden ones and settings cannot."""
    return sorted(path for path in paths if format_of(path) and not _is_passed_over(path))


def _is_passed_over(path: str) -> bool:
    *folders, name = PurePosixPath(path).parts
    hidden = any(part.startswith(".") for part in (*folders, name))
    special = any(folder.startswith("__") for folder in folders)
    return hidden or special or _NO_DATA.fullmatch(name) is not None


def configurations_of_names(names: Sequence[str]) -> list[Configuration]:
    """The configurations that folders name; one for all files if they name none."""
    for form in (_CONVERTED, _FOLDERS_OF_SPLITS):
        places = [form.fullmatch(name) for name in names]
        if names and all(places):
            found: dict[str, _Splits] = defaultdict(lambda: defaultdict(list))
            for place in filter(None, places):
                found[place[1]][place[2]].append(place[0])
            return [Configuration(name, _escaped(splits)) for name, splits in found.items()]
    return [Configuration(_ALL, None)]


def _escaped(splits: _Splits) -> _Splits:
    """The names of files as patterns that match only them."""
    special = re.compile(r"([*?\[])")
    return {split: [special.sub(r"[\1]", n) for n in names] for split, names in splits.items()}


def _splits_by_names(names: Sequence[str]) -> _Splits:
    sharded: _Splits = defaultdict(list)
    for name in names:
        if found := _SHARDED.fullmatch(name):
            sharded[found[1]].append(name)
    if sharded:
        return dict(sharded)
    for forms in (_IN_FOLDERS, _IN_NAMES):
        found = {
            split: matching(
                names, [form.format(k=k, s=_SEPARATORS) for k in words for form in forms]
            )
            for split, words in _KEYWORDS.items()
        }
        found = {split: files for split, files in found.items() if files}
        if found:
            return found
    return {"train": list(names)}


def chosen_configuration(
    configurations: Sequence[Configuration], config: str | None, repository: str
) -> Configuration:
    """The configuration of that name; without one the only or the default one.

    Raises: ValueError naming all.
    """
    known = shown([one.name for one in configurations])
    if config is None:
        if len(configurations) == 1:
            return configurations[0]
        defaults = [c for c in configurations if c.name == _ALL or c.is_default]
        if len(defaults) == 1:
            return defaults[0]
        raise ValueError(f"{repository} has the configurations {known}; name one with --config")
    for one in configurations:
        if one.name == config:
            return one
    raise ValueError(f"config={config} is not one of {repository}, which has {known}")


def of_one_kind(names: Sequence[str]) -> list[str]:
    """The files of the most frequent kind: others are lists of words, licences and the like."""
    kinds = Counter(format_of(name) for name in names)
    order = (".parquet", ".jsonl", ".txt")
    kind = max(order, key=lambda kind: (kinds[kind], -order.index(kind)))
    return [name for name in names if format_of(name) == kind]


def shown(names: Sequence[str]) -> str:
    """Names for a message."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}" if names else "none"
