"""Finds the files of a source: what of files, folders and globs is read or passed over.

Links are followed. A folder that several links lead to, or a link into a folder around it, is
visited once, and a file is read once.
"""

import glob
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from data_prep.sources.formats import KNOWN, format_of
from data_prep.sources.json_lines import is_one_object

log = logging.getLogger(__name__)

_NAMES_SHOWN = 10
_HIDDEN = "hidden"
_UNKNOWN = "of no known kind"
_SETTINGS = "one JSON object, no lines of records"
_NO_FILE = "no regular file"
_AGAIN = "found already"


@dataclass
class _FoundFiles:
    """The files to read, sorted by path, and the paths that are passed over, by reason."""

    is_known: Callable[[str], object]
    """Whether a file of this name is of a kind that is read."""
    kinds: str
    """Those kinds, for an error."""
    paths: list[Path] = field(default_factory=list)
    passed_over: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    @property
    def count_passed_over(self) -> int:
        """How many files, links and folders are passed over."""
        return sum(map(len, self.passed_over.values()))

    def log_names(self) -> None:
        """Say how many files are read and passed over, and which."""
        sizes = [path.stat().st_size for path in self.paths]
        empty = sizes.count(0)
        more = f", {empty} of them empty" if empty else ""
        total = f"{sum(sizes) / 1e6:,.1f} MB"
        log.info("files to read: %d (%s%s): %s", len(sizes), total, more, _names(self.paths))
        for reason, paths in self.passed_over.items():
            log.info("%d passed over (%s): %s", len(paths), reason, _names(paths))


def _names(paths: list[Path]) -> str:
    shown = [_printable(path.name) for path in paths[:_NAMES_SHOWN]]
    more = f" and {len(paths) - _NAMES_SHOWN} more" if len(paths) > _NAMES_SHOWN else ""
    return ", ".join(shown) + more


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def find_files(
    places: Iterable[str], is_known: Callable[[str], object] = format_of, kinds: str = KNOWN
) -> _FoundFiles:
    """The files that `places` name, of names that are known; `kinds` says which, for an error.

    Raises: ValueError if a place has no file of a known kind, or one that cannot be read.
    """
    found = _FoundFiles(is_known, kinds)
    candidates = {path for place in places for path in _files_at(place, found)}
    if not candidates:
        raise ValueError("no source was named; give at least one file, folder or glob")
    found.paths = _read_once(candidates, found)
    return found


def _files_at(place: str, found: _FoundFiles) -> list[Path]:
    """The files of one place. Raises: ValueError if there is none."""
    if "://" in place and not Path(place).exists():
        raise ValueError(
            f"{place.partition('://')[0]}:// begins a URL, which is not read here; copy the files"
        )
    # Made absolute without following links: the names in the Hub's cache are links to blobs, and a
    # blob's name has no suffix to tell the format.
    path = Path(os.path.abspath(os.path.expanduser(place)))  # an unknown ~user stays
    if path.is_dir():
        candidates = _files_below(path, found)
    elif path.exists():
        if not found.is_known(path.name):
            text = "if it is plain text, add .txt to its name, else save its text as .txt"
            cure = text if found.kinds == KNOWN else "give another file"
            raise ValueError(f"{path} is of no known kind; {cure} (the kinds are {found.kinds})")
        if not path.is_file():
            raise ValueError(
                f"{path} is no regular file; its text is read more than once, so save it to a file"
            )
        return [path]
    elif glob.has_magic(str(path)):
        candidates = _matches(path, found)
    else:
        raise ValueError(f"there is no {path}; give text files, folders or globs")
    files = [candidate for candidate in candidates if _is_wanted(candidate, found)]
    if not files:
        raise ValueError(f"{path} holds no file of the kinds {found.kinds}")
    return files


def _is_wanted(path: Path, found: _FoundFiles) -> bool:
    """Whether a file is read; if not, it is noted. Raises: ValueError if it cannot be read."""
    reason = ""
    if not found.is_known(path.name):
        reason = _UNKNOWN
    elif not path.exists():
        raise ValueError(f"{path} is a link to nothing; remove it, or restore what it links to")
    elif not path.is_file():
        reason = _NO_FILE
    elif ".json" in path.suffixes and os.access(path, os.R_OK) and is_one_object(path):
        reason = _SETTINGS
    if reason:
        found.passed_over[reason].append(path)
    return not reason


def _files_below(folder: Path, found: _FoundFiles) -> Iterator[Path]:
    for below in _folders(folder, found):
        for entry in _entries(below):
            path = below / entry.name
            if _is_hidden(entry.name):
                found.passed_over[_HIDDEN].append(path)
            elif not entry.is_dir():
                yield path


def _folders(start: Path, found: _FoundFiles) -> Iterator[Path]:
    """`start` and all folders below it, each once: those behind links after all others."""
    seen: set[tuple[int, int]] = set()
    folders, links = [start], []
    while folders or links:
        folder = folders.pop(0) if folders else links.pop(0)
        status = _status(folder)
        if (status.st_dev, status.st_ino) in seen:
            found.passed_over[_AGAIN].append(folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder
        for entry in _entries(folder):
            if entry.is_dir() and not _is_hidden(entry.name):
                (links if entry.is_symlink() else folders).append(folder / entry.name)


def _matches(pattern: Path, found: _FoundFiles) -> list[Path]:
    """What a glob matches, without folders. `**` is any number of folders."""
    parts = list(pattern.parts)
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    parts += ["*"] if parts[-1] == "**" else []
    candidates = [Path(*parts[:first])]
    for part in parts[first:]:
        candidates = [below for path in candidates for below in _below(path, part, found)]
    folders = [path for path in candidates if path.is_dir()]
    if "**" not in parts:
        found.passed_over["a folder"] += folders
    return [path for path in dict.fromkeys(candidates) if path not in set(folders)]


def _below(path: Path, part: str, found: _FoundFiles) -> Iterable[Path]:
    if not path.is_dir():
        return []
    if part == "**":
        return _folders(path, found)
    if not glob.has_magic(part):
        return [path / part] if os.path.lexists(path / part) else []
    names = [entry.name for entry in _entries(path)]
    hidden = _is_hidden(part)
    return [path / n for n in names if fnmatchcase(n, part) and _is_hidden(n) <= hidden]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(
        f"{path} cannot be read ({error.strerror}); give yourself the right to read it "
        "(`chmod u+rX`), or name only what is to be read"
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _read_once(candidates: set[Path], found: _FoundFiles) -> list[Path]:
    """The candidates, sorted, without links to others of them.

    Raises: ValueError for a file that may not be read, or whose name is not UTF-8.
    """
    real: dict[Path, Path] = {}
    # Real names before links, so that links are what is passed over.
    for path in sorted(candidates, key=lambda path: (os.path.realpath(path) != str(path), path)):
        _check_name(path)
        if not os.access(path, os.R_OK):
            raise _unreadable(path, PermissionError(13, "Permission denied"))
        kept = real.setdefault(Path(os.path.realpath(path)), path)
        if kept != path:
            found.passed_over[_AGAIN].append(path)
    return sorted(real.values())


def _check_name(path: Path) -> None:
    """Raises: ValueError if the path is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the name {str(path)!a} is not UTF-8, as names in a data set must be; "
            "rename the file or folder"
        ) from None
