"""Finds the files that a URL names: a file, a folder or a glob, by the rules for local ones."""

import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Any

from data_prep.hub.retries import RetryPolicy
from data_prep.preparation.cloud.addresses import WEB, checked_url, copy_name
from data_prep.preparation.cloud.stores import Store, StoredFile

log = logging.getLogger(__name__)

_HIDDEN = "hidden"
_UNKNOWN = "of no known kind"
_ASKED_AT_ONCE = 8  # files of a page with links, whose sizes are not known

_Found = tuple[str, bool, dict[str, Any]]
"""Path of a file in its store, whether a part of it is hidden, and what the store says of it."""


def find_remote(
    place: str, is_known: Callable[[str], object], kinds: str, retries: RetryPolicy | None = None
) -> tuple[list[StoredFile], bool, int]:
    """The files of one URL, whether it names just one, and how many are passed over.

    Raises: ValueError if there is no file of a known kind, or the store does not answer.
    """
    store = Store(checked_url(place), retries)
    if _has_magic(store):
        found = _matches(store)
    else:
        info = store.info(store.path)
        if info["type"] != "directory":
            return [_named_file(store, info, is_known, kinds)], True, 0
        found = _below(store, store.path, None)
    passed_over: Counter[str] = Counter()
    wanted: list[tuple[str, dict[str, Any]]] = []
    for path, hidden, info in found:
        if hidden:
            passed_over[_HIDDEN] += 1
        elif not is_known(_last_part(store, path)):
            passed_over[_UNKNOWN] += 1
        else:
            wanted.append((path, info))
    if not wanted:
        raise ValueError(f"{store.shown(store.path)} holds no file of the kinds {kinds}")
    for reason, count in passed_over.items():
        log.info("%s: %d passed over (%s)", store.shown(store.path), count, reason)
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
        files = list(threads.map(lambda file: _stored(store, *file), wanted))
    return files, False, passed_over.total()


def _has_magic(store: Store) -> bool:
    # In an address of the web, ? begins a query.
    path = store.path.partition("?")[0] if store.protocol in WEB else store.path
    return glob.has_magic(path)


def _named_file(
    store: Store, info: dict[str, Any], is_known: Callable[[str], object], kinds: str
) -> StoredFile:
    shown = store.shown(store.path)
    if not is_known(_last_part(store, store.path)):
        folder = "a folder ends in /; " if store.protocol in WEB else ""
        raise ValueError(
            f"{shown} is of no known kind; {folder}copy a file to a name that ends like its kind "
            f"(the kinds are {kinds})"
        )
    return _stored(store, store.path, info)


def _last_part(store: Store, path: str) -> str:
    return copy_name(store.protocol, path).rpartition("/")[2]


def _stored(store: Store, path: str, info: dict[str, Any]) -> StoredFile:
    if info.get("size") is None and "page" not in info:  # known by a link only
        info = store.info(path)
    if info.get("page"):
        raise ValueError(
            f"{store.shown(path)} is a web page and no file; give the address of the file itself "
            "(on GitHub with /raw/ in place of /blob/, on the Hub with /resolve/)"
        )
    return store.stored_file(path, copy_name(store.protocol, path), info)


def _below(store: Store, folder: str, depth: int | None) -> Iterator[_Found]:
    """Each file below a folder."""
    start = folder.rstrip("/") + "/"
    for path, info in store.find(folder, depth).items():
        # An object that ends in / stands for a folder.
        is_file = info.get("type", "file") == "file" and not path.endswith("/")
        if is_file and path.startswith(start):
            yield path, any(map(_is_hidden, path[len(start) :].split("/"))), info


def _matches(store: Store) -> Iterator[_Found]:
    """What a glob matches. `**` is any number of folders."""
    parts = store.path.split("/")
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    pattern = parts[first:] + (["*"] if parts[-1] == "**" else [])
    depth = None if "**" in pattern else len(pattern)
    for path, _, info in _below(store, "/".join(parts[:first]), depth):
        if _fits(path.split("/")[first:], pattern):
            yield path, False, info


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path match those of a glob, which names hidden ones only by a dot."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        inside = len(parts) > 1 and not _is_hidden(parts[0]) and _fits(parts[1:], pattern)
        return inside or _fits(parts, pattern[1:])
    shown = _is_hidden(parts[0]) <= _is_hidden(pattern[0])
    return shown and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
