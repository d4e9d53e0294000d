"""Lists the files of a data set on the Hub at one commit, and fetches parquet footers.

Only the footers of parquet files are needed to divide them into units. So work can begin when the
first file is downloaded, and a resumed preparation fetches only the files of unfinished units.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as parquet

from data_prep.dataset.manifest import SourceFile
from data_prep.hub.download import LOCAL_FILES, Downloader, RemoteFile, permanent_error_text
from data_prep.hub.retries import PermanentError, RetryableError
from data_prep.sources.file_source import FileSource, Unit
from data_prep.sources.formats import format_of
from storage.atomic import new_file, read_json, write_json
from storage.terminal.quantities import counted, data_size

log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 20  # to count documents
_FOOTER_GUESS = 1 << 16  # bytes to read first from the end of a parquet file
_PARQUET_MAGIC = b"PAR1"
FOOTERS = "footers"
LISTING = "listing.json"


@dataclass(frozen=True)
class Listing:
    """Files of a repository at one commit, sorted by name."""

    repository: str
    commit: str
    files: tuple[SourceFile, ...]
    validation: tuple[str, ...] = ()
    """The names of those that are validation."""


def is_commit(revision: str) -> bool:
    """Whether the revision is a commit, whose files never change, and no branch or tag."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


class Hub:
    """Requests to the Hub about one data set repository."""

    def __init__(self, repository: str, downloader: Downloader) -> None:
        self.repository = repository
        self.downloader = downloader

    def list_files(self, folder: str, wanted: Callable[[str], bool], revision: str) -> Listing:
        """The files below `folder` whose names `wanted` accepts; none if there is no such folder.

        Raises: ValueError if the Hub cannot be reached, or does not have repository or revision.
        """
        # First the commit: a branch may move between two requests.
        commit = self.resolve(revision)
        entries = [entry for entry in self.entries(commit, folder) if wanted(entry["path"])]
        return self.listing(commit, entries)

    def listing(self, commit: str, entries: Iterable[dict[str, Any]]) -> Listing:
        """The files of these entries. Raises: ValueError if one cannot be fetched."""
        files = (self._source_file(entry, commit) for entry in entries)
        return Listing(self.repository, commit, tuple(sorted(files, key=lambda file: file.name)))

    def entries(
        self, commit: str, folder: str = "", recursive: bool = True
    ) -> list[dict[str, Any]]:
        """What the Hub says of each file in a folder; nothing if there is no such folder."""
        found = self._tree(commit, folder, recursive)
        return [entry for entry in found if entry["type"] == "file"]

    def text_of(self, entry: dict[str, Any], commit: str) -> str:
        """The content of a small file. Raises: ValueError if it cannot be fetched."""
        return self._content(entry, commit).decode(errors="replace")

    def folders(self, commit: str, folder: str) -> list[str]:
        """The names of the folders directly in `folder`."""
        entries = self._tree(commit, folder, recursive=False)
        return [Path(entry["path"]).name for entry in entries if entry["type"] == "directory"]

    def remote(self, file: SourceFile, commit: str) -> RemoteFile:
        """The address and the expected content of a listed file."""
        name = f"{self.repository}/{file.name}"
        return RemoteFile(name, self._url(file.name, commit), file.bytes, file.sha256)

    def footer(self, file: SourceFile, commit: str) -> bytes | None:
        """The footer of a parquet file (its row groups); None if the server ignores ranges."""
        remote = self.remote(file, commit)
        try:
            return self.downloader.with_retries(
                f"the footer of {remote.name}", lambda: self._footer(remote)
            )
        except PermanentError as error:
            raise ValueError(f"{remote.name} {permanent_error_text(error)}") from error

    def _footer(self, remote: RemoteFile) -> bytes | None:
        # No digest covers a part of a file, so the footer is read until two readings agree. The
        # first one shows how long it is.
        length = min(remote.size, _FOOTER_GUESS)
        before = b""
        while True:
            found = self._tail(remote, length)
            if found is None:
                return None
            if found == before:
                return found
            needed = int.from_bytes(found[-8:-4], "little") + 8
            if found[-4:] != _PARQUET_MAGIC or needed > remote.size:
                raise RetryableError("it is not the end of a parquet file")
            if before and len(before) >= needed:
                raise RetryableError("two readings of it differ")
            length, before = needed, found[-needed:]

    def _tail(self, remote: RemoteFile, length: int) -> bytes | None:
        start = remote.size - length
        return self.downloader.with_retries(
            f"the footer of {remote.name}",
            lambda: self.downloader.body(remote.url, start, remote.size),
        )

    def resolve(self, revision: str) -> str:
        """The commit of a revision. Raises: ValueError if the Hub does not have it."""
        what = f"{self.repository} at revision={revision[:200]}"
        attempts = self.downloader.retries.first_request_attempts
        path = f"revision/{quote(revision, safe='')}"
        try:
            found, _ = self.downloader.with_retries(what, lambda: self._api(path), attempts)
        except PermanentError as error:
            raise ValueError(self._not_found(error, revision)) from error
        return found["sha"]

    def _not_found(self, error: PermanentError, revision: str) -> str:
        if error.code == "RevisionNotFound":
            return f"revision={revision[:200]} of {self.repository} is not on the Hub; try main"
        if error.code == "RepoNotFound" or error.status == 404:
            return (
                f"{self.repository} is not on the Hub or needs a login (`hf auth login`); "
                f"check its name, {LOCAL_FILES}"
            )
        return f"{self.repository} {permanent_error_text(error)}"

    def _tree(self, commit: str, folder: str, recursive: bool = True) -> Iterator[dict[str, Any]]:
        flag = "true" if recursive else "false"
        below = f"/{quote(folder)}" if folder else ""
        page: str | None = f"tree/{commit}{below}?recursive={flag}&expand=false"
        while page:
            path = page
            try:
                found, page = self.downloader.with_retries(
                    f"the listing of {self.repository}", lambda path=path: self._api(path)
                )
            except PermanentError as error:
                if error.code == "EntryNotFound":
                    return
                raise ValueError(self._not_found(error, commit)) from error
            yield from found

    def _api(self, path: str) -> tuple[Any, str | None]:
        """The parsed answer and the address of the next page, if there is one."""
        base = f"{self.downloader.endpoint}/api/datasets/{self.repository}/"
        with self.downloader.answer(path if path.startswith("http") else base + path) as response:
            response.read()
            try:
                return response.json(), response.links.get("next", {}).get("url")
            except ValueError as error:
                raise RetryableError("its answer is not JSON") from error

    def _source_file(self, entry: dict[str, Any], commit: str) -> SourceFile:
        if "lfs" in entry:
            return SourceFile(entry["path"], entry["size"], entry["lfs"]["oid"])
        content = self._content(entry, commit)
        return SourceFile(entry["path"], entry["size"], hashlib.sha256(content).hexdigest())

    def _content(self, entry: dict[str, Any], commit: str) -> bytes:
        name = f"{self.repository}/{entry['path']}"
        try:
            return self.downloader.with_retries(name, lambda: self._small_file(entry, commit))
        except PermanentError as error:
            raise ValueError(f"{name} {permanent_error_text(error)}") from error

    def _small_file(self, entry: dict[str, Any], commit: str) -> bytes:
        # Small files are not in LFS. The Hub gives no sha256 for them, only git's sha1 of the blob.
        with self.downloader.answer(self._url(entry["path"], commit)) as response:
            content = b"".join(response.iter_raw())
        if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != entry["oid"]:
            raise RetryableError("it arrived damaged")
        return content

    def _url(self, path: str, commit: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            self.repository,
            path,
            repo_type="dataset",
            revision=commit,
            endpoint=self.downloader.endpoint,
        )


def cached_listing(folder: Path, revision: str, key: str, ask: Callable[[], Listing]) -> Listing:
    """The listing that `ask` returns; read from `folder` if an earlier start saved it there.

    So unfinished work continues at the commit where it began, also if a branch has moved since.
    """
    path = folder / LISTING
    known = read_json(path) if path.is_file() else {}
    commit = known.get("commit")
    if known.get("key") == key and revision in (commit, known.get("asked")):
        if not is_commit(revision):
            log.info("continuing with %s of %s (delete %s for another)", commit, revision, path)
        files = tuple(SourceFile(**file) for file in known["files"])
        return Listing(
            known["repository"], known["commit"], files, tuple(known.get("validation", ()))
        )
    listing = ask()
    write_json(path, {"key": key, "asked": revision, **asdict(listing)})
    found = (
        f"{counted(len(listing.files), 'file')}, {data_size(sum(f.bytes for f in listing.files))}"
    )
    log.info("%s at %s: %s", listing.repository, listing.commit, found)
    return listing


@dataclass(frozen=True)
class HubSource(FileSource):
    """Files that will be downloaded to `root`; to plan, their footers in `footers` are enough."""

    footers: Path = Path()

    def footer_of(self, file: SourceFile) -> Path:
        """The path of a file's footer, named by the sha256 of the file."""
        return self.footers / file.sha256

    def planning_path(self, file: SourceFile) -> Path:
        """The footer of a file; the file itself if it has none."""
        footer = self.footer_of(file)
        return footer if footer.is_file() else self.root / file.name

    def is_readable(self, number: int) -> bool:
        """Text files, which are downloaded to plan. Of parquet files only the footer is here."""
        return format_of(self.files[number].name) != ".parquet"

    def documents_in(self, file: SourceFile) -> int:
        """How many documents a file holds; it must be here, or its footer."""
        path = self.planning_path(file)
        if format_of(file.name) == ".parquet":
            return parquet.read_metadata(path).num_rows
        return sum(piece.rows for piece in self.pieces(self.files.index(file), _PIECE_BYTES))

    def files_of(self, unit: Unit) -> list[int]:
        """The numbers of the files that a unit reads."""
        return sorted({span.file for span in unit.spans})


def fetch_footer(hub: Hub, file: SourceFile, commit: str, path: Path) -> bool:
    """Save the footer of a parquet file at `path`; False if the server ignores ranges."""
    if path.is_file():
        return True
    footer = hub.footer(file, commit)
    if footer is None:
        return False
    with new_file(path) as temporary:
        temporary.write_bytes(footer)
    return True
