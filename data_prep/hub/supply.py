"""Downloads files just before the units that need them, and deletes them afterwards.

At most two files are downloaded ahead of the work. So disk space for a few files is enough even for
10 billion tokens.
"""

import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from data_prep.dataset.manifest import SourceFile
from data_prep.hub.download import Downloader, partial_of
from data_prep.hub.listing import FOOTERS, LISTING, Hub, HubSource, Listing, fetch_footer
from data_prep.sources.file_source import Unit
from data_prep.sources.formats import format_of
from storage.atomic import remove_if_empty, remove_leftovers
from storage.locks import take_lock

AHEAD = 2  # files downloaded, or being downloaded, before a unit reads them
_MAX_DOWNLOADS = 4  # downloads at the same time, also of footers
_SECONDS_TO_STOP = 2.0


class FileProvider(Protocol):
    """Makes the files of units available; units are asked for in the order of the work."""

    def ready(self, unit: Unit) -> bool:
        """Whether all files of the unit are here. Raises: ValueError if one cannot be fetched."""
        ...

    def wait(self, unit: Unit) -> None:
        """Wait for all files of the unit. Raises: ValueError if one cannot be fetched."""
        ...

    def finished(self, unit: Unit) -> None:
        """Note that the unit is finished, so that its files may be deleted."""
        ...


class LocalFiles:
    """The provider of a source whose files are local and stay."""

    def ready(self, unit: Unit) -> bool:
        """Always true."""
        return True

    def wait(self, unit: Unit) -> None:
        """Return at once."""

    def finished(self, unit: Unit) -> None:
        """Do nothing: local files stay."""


class Downloads:
    """Downloads the files of one listing below `folder`.

    Listing and footers are shared by all parts of a preparation. Each part downloads files into a
    folder of its own, `source.root`.
    """

    def __init__(
        self, hub: Hub, listing: Listing, source: HubSource, folder: Path, keep: bool
    ) -> None:
        self.hub = hub
        self.listing = listing
        self.source = source
        self.folder = folder
        self.keep = keep
        self._planning_files: list[Path] = []
        """Files that were downloaded completely only to plan."""

    def fetch_first_for_planning(self) -> None:
        """Fetch what planning needs of the first file. Raises: ValueError if that fails."""
        self._fetch_for_planning(self.listing.files[0])

    def fetch_for_planning(self, max_documents: int | None) -> None:
        """Fetch what planning needs: footers of parquet files, and other files completely.

        With `max_documents`, `source` is reduced to the first files that hold that many.
        Raises: ValueError if a file cannot be fetched.
        """
        if max_documents is None:
            with ThreadPoolExecutor(_MAX_DOWNLOADS) as threads:
                list(threads.map(self._fetch_for_planning, self.listing.files))
            return
        documents = 0
        for count, file in enumerate(self.listing.files, start=1):
            self._fetch_for_planning(file)
            documents += self.source.documents_in(file)
            if documents >= max_documents:
                self.source = replace(self.source, files=self.source.files[:count])
                return

    def _fetch_for_planning(self, file: SourceFile) -> None:
        footer = self.source.footer_of(file)
        parquet = format_of(file.name) == ".parquet"
        if not (parquet and fetch_footer(self.hub, file, self.listing.commit, footer)):
            path = self.source.root / file.name
            if not path.exists():
                self._planning_files.append(path)
            self.fetch(file)

    def fetch(self, file: SourceFile) -> None:
        """Fetch a complete file; check its sha256, and that its footer is the one used to plan.

        Raises: ValueError naming the file.
        """
        path, footer = self.source.root / file.name, self.source.footer_of(file)
        self.hub.downloader.fetch(self.hub.remote(file, self.listing.commit), path)
        if footer.is_file() and not _ends_with(path, footer.read_bytes()):
            footer.unlink()
            raise ValueError(
                f"{file.name} has another footer than the one fetched before, which was damaged on "
                "the way and is deleted; delete the .partial folder of this preparation and run it "
                "again"
            )

    def bytes_at_once(self, todo: list[Unit], workers: int) -> int:
        """Disk space for the downloads: all of them, or the largest that are here at a time."""
        numbers = {number for unit in todo for number in self.source.files_of(unit)}
        missing = [
            n for n in numbers if not (self.source.root / self.source.files[n].name).exists()
        ]
        sizes = sorted((self.source.files[n].bytes for n in missing), reverse=True)
        if self.keep:
            return sum(sizes)
        # Files that the workers read now, at the mean number of files per unit, and one more.
        in_use = -(-workers * len(numbers) // max(1, len(todo))) + 1
        return sum(sizes[: AHEAD + in_use])

    @contextmanager
    def provide(self, todo: Iterable[Unit], keep: bool = False) -> Iterator[FileProvider]:
        """Download the files of `todo`, in its order, while the block runs."""
        old = self.hub.downloader
        # A downloader of its own: its `stopping` event stays set, so threads that are still running
        # after this block end at their next check.
        downloader = Downloader(old.endpoint, old.retries)
        hub = Hub(self.hub.repository, downloader)
        own = Downloads(hub, self.listing, self.source, self.folder, keep or self.keep)
        provider = _DownloadProvider(own, list(todo))
        try:
            yield provider
        finally:
            downloader.stopping.set()
            provider.close()

    def clean(self) -> None:
        """Delete the downloads of a finished data set, and folders that are empty then."""
        if not self.keep:
            for folder in (self.folder, *self.folder.glob("part_*_of_*")):
                for file in self.listing.files:
                    path = folder / file.name
                    path.unlink(missing_ok=True)
                    partial_of(path).unlink(missing_ok=True)  # of a part that was killed
        clean_downloads(self.folder)

    def discard_planning_files(self) -> None:
        """Delete what was fetched only to find that the data set is complete already."""
        if not self.keep:
            for path in self._planning_files:
                path.unlink(missing_ok=True)
        clean_downloads(self.folder)


class _DownloadProvider:
    """A FileProvider that is called from one thread and downloads each file in its own thread."""

    def __init__(self, downloads: Downloads, todo: list[Unit]) -> None:
        self._downloads = downloads
        self._source = downloads.source
        self._keep = downloads.keep
        # For each file, the units that still need it (by their first document).
        self._users: dict[int, set[int]] = {}
        for unit in todo:
            for number in self._source.files_of(unit):
                self._users.setdefault(number, set()).add(unit.first_document)
        self._files: dict[int, Future[None]] = {}
        self._threads: list[threading.Thread] = []
        self._ahead: set[int] = set()
        self._slots = threading.Semaphore(_MAX_DOWNLOADS)
        self._start_ahead()

    def ready(self, unit: Unit) -> bool:
        """Whether every file of the unit is here."""
        files = self._start_now(self._source.files_of(unit))
        for file in files:
            if file.done():
                file.result()  # raises the error of a failed download
        return all(file.done() for file in files)

    def wait(self, unit: Unit) -> None:
        """Return when every file of the unit is here."""
        for file in self._start_now(self._source.files_of(unit)):
            file.result()

    def finished(self, unit: Unit) -> None:
        """Delete every file that no unit needs any more."""
        for number in self._source.files_of(unit):
            users = self._users[number]
            users.discard(unit.first_document)
            if not users and not self._keep:
                (self._source.root / self._source.files[number].name).unlink(missing_ok=True)

    def close(self) -> None:
        """Wait a moment for the downloads, which were told to stop."""
        for thread in self._threads:
            thread.join(_SECONDS_TO_STOP)

    def _start_now(self, numbers: list[int]) -> list[Future[None]]:
        """Start the files that a unit waits for, and others to have AHEAD files ahead again."""
        for number in numbers:
            self._start(number)
        self._ahead -= set(numbers)
        self._start_ahead()
        return [self._files[number] for number in numbers]

    def _start_ahead(self) -> None:
        for number in self._users:
            if len(self._ahead) >= AHEAD:
                return
            if number not in self._files:
                self._ahead.add(number)
                self._start(number)

    def _start(self, number: int) -> None:
        if number not in self._files:
            self._files[number] = Future()
            # A daemon thread: a read that hangs must not delay the end of the program.
            thread = threading.Thread(target=self._download, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _download(self, number: int) -> None:
        try:
            with self._slots:
                self._downloads.fetch(self._source.files[number])
            self._files[number].set_result(None)
        except BaseException as error:
            self._files[number].set_exception(error)


def clean_downloads(folder: Path) -> None:
    """Delete the listing, the footers and empty folders of downloads, but no downloaded file."""
    if not folder.is_dir():
        return
    shutil.rmtree(folder / FOOTERS, ignore_errors=True)
    for name in (LISTING, "lock"):
        (folder / name).unlink(missing_ok=True)
    below = [path for path in folder.rglob("*") if path.is_dir()]
    for path in (*sorted(below, reverse=True), folder):
        remove_if_empty(path)


@contextmanager
def download_lock(folder: Path) -> Iterator[None]:
    """Make processes that start together take turns, so that only the first asks the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "lock"
    try:
        with lock.open("a+") as file:
            take_lock(file)
            remove_leftovers(folder)
            try:
                yield
            finally:
                with suppress(OSError):
                    if list(folder.iterdir()) == [lock]:  # nothing was fetched
                        lock.unlink()
    finally:
        remove_if_empty(folder)


def _ends_with(path: Path, tail: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(-len(tail), 2)
        return file.read() == tail
