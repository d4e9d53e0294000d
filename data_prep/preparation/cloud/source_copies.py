"""The source of a preparation, whether its files are local or named by URL.

Files of a URL are copied to OUT.source first, because each has a sha256 in the manifest and most
are read more than once. Copies are like local files in everything: checks, units, names in the
manifest. They are deleted when the data set is complete.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.dataset.manifest import Manifest, read_manifest
from data_prep.hub.retries import RetryPolicy
from data_prep.hub.supply import clean_downloads, download_lock
from data_prep.preparation.cloud.addresses import is_local_url, is_url, without_credentials
from data_prep.preparation.cloud.copy_threads import copy_all
from data_prep.preparation.cloud.copying import Copies, has_copies
from data_prep.preparation.cloud.remote_search import find_remote
from data_prep.preparation.cloud.stores import StoredFile
from data_prep.preparation.options import HubOptions, PrepareOptions
from data_prep.preparation.work_folder import is_data_set
from data_prep.sources.file_digests import DigestFolder
from data_prep.sources.file_source import FileSource, file_source
from data_prep.sources.formats import KNOWN, format_of
from data_prep.sources.json_lines import is_one_object

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Found:
    """What all URLs of a source name."""

    files: list[StoredFile]
    by_place: dict[str, tuple[str, ...]]
    """The names of the copies of each URL."""
    named: frozenset[str]
    """The copies of files that a URL names itself, not by a folder or a glob."""
    passed_over: int


@dataclass(frozen=True)
class _LocalCopies:
    """The copies of the files that are read."""

    paths: dict[str, str]
    """By the name of the copy."""
    urls: dict[str, str]
    """The addresses of the files, without credentials, by the paths of the copies."""
    by_place: dict[str, tuple[str, ...]]
    passed_over: int

    def of(self, places: Iterable[str]) -> tuple[str, ...]:
        """The paths of all files that these URLs name."""
        names = (name for place in places for name in self.by_place[place])
        return tuple(self.paths[name] for name in names if name in self.paths)


@dataclass(frozen=True)
class CopyOptions:
    """Where the files of URLs are copied to, and how long they stay."""

    out: Path | None = None
    """What is made of them: they are beside it, or in a temporary folder if it is None."""
    keep: bool = False
    """Let them stay. Otherwise they are deleted when what is made of them is complete."""
    is_ours: Callable[[Manifest], bool] | None = None
    """If given, nothing is copied if there is a data set at `out`: it is this one if `is_ours` says
    so and its files have the same names and sizes."""
    retries: RetryPolicy | None = None

    @staticmethod
    def of(
        options: PrepareOptions,
        out: Path,
        is_ours: Callable[[Manifest], bool] | None = lambda _: True,
    ) -> "CopyOptions":
        """Those of a preparation. A check uses copies of a start that failed, and leaves none."""
        if options.check:
            there = has_copies(_folder_beside(out))
            return CopyOptions(out if there else None, keep=there)
        keep = options.part is not None or (isinstance(options, HubOptions) and options.keep_source)
        return CopyOptions(out, keep, is_ours)


@contextmanager
def opened_source(
    places: Iterable[str],
    copying: CopyOptions,
    text_key: str = "text",
    separator: str = "<|endoftext|>",
    kept: DigestFolder | None = None,
    template: str | None = None,
) -> Iterator[FileSource]:
    """The source of files, folders, globs and URLs, for as long as the block runs.

    If the block ends with an error, copies stay, so that the same command continues.
    Raises: ValueError if a file cannot be found, copied or read, or `out` holds anything else.
    """
    places = tuple(_local_path(place) for place in places)
    if not any(map(is_url, places)):
        yield file_source(places, text_key, separator, kept, template)
        return
    out, is_ours = copying.out, copying.is_ours
    found = _found_at(places, format_of, KNOWN, copying.retries)
    finished = _source_of_finished(found, out, is_ours) if out and is_ours else None
    if finished is not None:
        yield replace(finished, text_key=text_key, separator=separator, template=template)
        return
    with _copied(found, copying, _is_settings) as local:
        source = file_source(local.paths.values(), text_key, separator, kept, template)
        shown = tuple(local.urls[str(source.root / file.name)] for file in source.files)
        passed_over = source.passed_over + local.passed_over
        yield replace(source, passed_over=passed_over, shown=shown)


@contextmanager
def local_places(
    groups: Sequence[Sequence[str]],
    copying: CopyOptions,
    is_known: Callable[[str], object] = format_of,
    kinds: str = KNOWN,
) -> Iterator[list[tuple[str, ...]] | None]:
    """The places of each group, for URLs those of their copies; None if `out` is made of these.

    Raises: ValueError as `opened_source` does.
    """
    local = [tuple(_local_path(place) for place in group) for group in groups]
    if not any(is_url(place) for group in local for place in group):
        yield local
        return
    every = tuple(place for group in local for place in group)
    found = _found_at(every, is_known, kinds, copying.retries)
    out, is_ours = copying.out, copying.is_ours
    if out and is_ours and _source_of_finished(found, out, is_ours):
        yield None
        return
    with _copied(found, copying, _is_settings) as copies:
        yield [copies.of(group) for group in local]


def _is_settings(path: Path) -> bool:
    """Whether a file in a folder is one of settings, which is passed over as among local files."""
    return ".json" in path.suffixes and is_one_object(path)


def _local_path(place: str) -> str:
    if is_url(place) and is_local_url(place):
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem._strip_protocol(place)  # pyright: ignore[reportPrivateUsage]
    return place


def _found_at(
    places: tuple[str, ...],
    is_known: Callable[[str], object],
    kinds: str,
    retries: RetryPolicy | None = None,
) -> _Found:
    local = [place for place in places if not is_url(place)]
    if local:
        url = next(place for place in places if is_url(place))
        raise ValueError(
            f"{local[0]} is local and {without_credentials(url)} is not; make a data set of each, "
            "or copy the files"
        )
    files: dict[str, StoredFile] = {}
    by_place: dict[str, tuple[str, ...]] = {}
    named: set[str] = set()
    passed_over = 0
    for place in places:
        found, is_one_file, more = find_remote(place, is_known, kinds, retries)
        for file in found:
            known = files.setdefault(file.copy, file)
            if known.path != file.path:
                raise ValueError(
                    f"{file.shown} is named twice, with different queries; give it once"
                )
        by_place[place] = tuple(file.copy for file in found)
        named |= {file.copy for file in found if is_one_file}
        passed_over += more
    in_order = [files[name] for name in sorted(files)]
    return _Found(in_order, by_place, frozenset(named), passed_over)


def _source_of_finished(
    found: _Found, out: Path, is_ours: Callable[[Manifest], bool]
) -> FileSource | None:
    """The source of the complete data set at `out`; None if it must be copied to know.

    Raises: ValueError if `out` holds anything else, so that nothing is copied in vain.
    """
    if not is_data_set(out):
        return None
    manifest = read_manifest(out)
    root = Path(os.path.commonpath([Path(file.copy).parent for file in found.files]))
    now = {Path(f.copy).relative_to(root).as_posix(): f.size for f in found.files}
    then = {file.name: file.bytes for file in manifest.source.files}
    if is_ours(manifest) and now == then:
        log.info("%s was made of files of these names and sizes; they are not read again", out)
        return FileSource("files", "", root, manifest.source.files)
    # A file of settings was passed over when its content was seen, and some servers say no size.
    seen = {name for name in now if name in then or ".json" not in Path(name).suffixes}
    same = seen == then.keys() and all(now[n] in (None, size) for n, size in then.items())
    if is_ours(manifest) and same:
        return None
    raise ValueError(
        f"{out} holds another data set, made of other files or with another tokenizer; choose "
        "another --out or move it away"
    )


@contextmanager
def _copied(
    found: _Found, copying: CopyOptions, is_passed_over: Callable[[Path], bool]
) -> Iterator[_LocalCopies]:
    out = copying.out
    with nullcontext(_folder_beside(out)) if out else TemporaryDirectory("", "copies.") as folder:
        copies = Copies(Path(folder))
        try:
            with download_lock(copies.folder):
                copies = Copies(copies.folder)  # which another process may have made meanwhile
                copy_all(copies, found.files)
            paths = {file.copy: copies.path(file) for file in found.files}
            settings = {
                name
                for name, path in paths.items()
                if name not in found.named and is_passed_over(path)
            }
            if settings:
                log.info("%d passed over (one JSON object, no lines of records)", len(settings))
            local = {name: str(path) for name, path in paths.items() if name not in settings}
            if not local:
                raise ValueError(f"{found.files[0].shown} is no text; give the files of text")
            passed_over = found.passed_over + len(settings)
            urls = {os.path.abspath(copies.path(file)): file.shown for file in found.files}
            yield _LocalCopies(local, urls, found.by_place, passed_over)
        except BaseException:
            if out is not None and any(copies.folder.glob("*/")):
                log.info("%s keeps what was copied; the same command continues", copies.folder)
            raise
        if not copying.keep:
            copies.remove_all()
            clean_downloads(copies.folder)


def _folder_beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.source")
