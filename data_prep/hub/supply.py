"""Files of the Hub brought just before the units that need them, and deleted after the last one.

At most two files lie or come ahead of the work, so ten billion tokens need room for a few files.
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
from data_prep.sources.readers import format_of
from storage.atomic import remove_if_empty
from storage.locks import take_lock

AHEAD = 2  # files that come or lie here before a unit has begun to read them
AT_ONCE = 4  # requests for footers, or downloads where a unit waits for many small files
SECONDS_TO_STOP = 2.0


class FileProvider(Protocol):
    """Tells whether the files of a unit are here; asked in the order of the work."""

    def ready(self, unit: Unit) -> bool:
        """Whether the unit can begin. Raises: ValueError if a file of it cannot be had."""
        ...

    def wait(self, unit: Unit) -> None:
        """Return when it can begin. Raises: ValueError if a file of it cannot be had."""
        ...

    def finished(self, unit: Unit) -> None:
        """The unit's shards are published."""
        ...


class LocalFiles:
    """The supply of a source whose files are here and stay."""

    def ready(self, unit: Unit) -> bool:
        """Always."""
        return True

    def wait(self, unit: Unit) -> None:
        """At once."""

    def finished(self, unit: Unit) -> None:
        """Nothing is deleted."""


class Downloads:
    """The files of one listing, below `folder`.

    What only describes files (listing, footers) is shared by all parts of a preparation; each
    downloads into a folder of its own, which is `source.root`.
    """

    def __init__(
        self, hub: Hub, listing: Listing, source: HubSource, folder: Path, keep: bool
    ) -> None:
        self.hub = hub
        self.listing = listing
        self.source = source
        self.folder = folder
        self.keep = keep
        self._described: list[Path] = []
        """Files that came whole to plan from them."""

    def describe(self, max_documents: int | None) -> None:
        """Have what planning needs: footers of parquet files, other files whole.

        Raises: ValueError if it cannot be had.
        """
        if max_documents is None:
            with ThreadPoolExecutor(AT_ONCE) as threads:
                list(threads.map(self._describe, self.listing.files))
            return
        documents = 0
        for count, file in enumerate(self.listing.files, start=1):
            self._describe(file)
            if format_of(file.name) != ".parquet":
                continue
            documents += self.source.documents_in(file)
            if documents >= max_documents:
                self.source = replace(self.source, files=self.listing.files[:count])
                return

    def _describe(self, file: SourceFile) -> None:
        footer = self.source.footer_of(file)
        parquet = format_of(file.name) == ".parquet"
        if not (parquet and fetch_footer(self.hub, file, self.listing.commit, footer)):
            path = self.source.root / file.name
            if not path.exists():
                self._described.append(path)
            self.fetch(file)

    def fetch(self, file: SourceFile) -> None:
        """Have the whole file, checked by its sha256 and against the footer that was planned from.

        Raises: ValueError naming the file.
        """
        path, footer = self.source.root / file.name, self.source.footer_of(file)
        self.hub.downloader.fetch(self.hub.remote(file, self.listing.commit), path)
        if footer.is_file() and not _ends_with(path, footer.read_bytes()):
            footer.unlink()
            raise ValueError(
                f"{file.name} has another footer than came before it, which was damaged on the way "
                "and is deleted; delete the .partial folder of this preparation and run it again"
            )

    def bytes_at_once(self, todo: list[Unit], workers: int) -> int:
        """Room for the downloads: all files, or as many of the largest as lie here at a time."""
        numbers = {number for unit in todo for number in self.source.files_of(unit)}
        missing = [
            n for n in numbers if not (self.source.root / self.source.files[n].name).exists()
        ]
        sizes = sorted((self.source.files[n].bytes for n in missing), reverse=True)
        if self.keep:
            return sum(sizes)
        in_use = -(-workers * len(numbers) // max(1, len(todo))) + 1
        return sum(sizes[: AHEAD + in_use])

    @contextmanager
    def supplying(self, todo: Iterable[Unit], keep: bool = False) -> Iterator[FileProvider]:
        """Bring the files of `todo` in its order while the block runs."""
        old = self.hub.downloader
        # Of its own, so that threads told to stop never go on.
        downloader = Downloader(old.endpoint, old.patience)
        hub = Hub(self.hub.repository, downloader)
        own = Downloads(hub, self.listing, self.source, self.folder, keep or self.keep)
        supply = _FileSupply(own, list(todo))
        try:
            yield supply
        finally:
            downloader.stopping.set()
            supply.close()

    def clean(self) -> None:
        """Delete what came for a data set that is finished now, and the folders then empty."""
        if not self.keep:
            for folder in (self.folder, *self.folder.glob("part_*_of_*")):
                for file in self.listing.files:
                    path = folder / file.name
                    path.unlink(missing_ok=True)
                    partial_of(path).unlink(missing_ok=True)  # of a part that was killed
        clean_downloads(self.folder)

    def forget_described(self) -> None:
        """Delete what came to learn that nothing was to be done."""
        if not self.keep:
            for path in self._described:
                path.unlink(missing_ok=True)
        clean_downloads(self.folder)


class _FileSupply:
    """Called by one thread; every file that comes has a thread of its own."""

    def __init__(self, downloads: Downloads, todo: list[Unit]) -> None:
        self._downloads = downloads
        self._source = downloads.source
        self._keep = downloads.keep
        self._users: dict[int, set[int]] = {}
        for unit in todo:
            for number in self._source.files_of(unit):
                self._users.setdefault(number, set()).add(unit.first_document)
        self._coming: dict[int, Future[None]] = {}
        self._threads: list[threading.Thread] = []
        self._ahead: set[int] = set()
        self._at_once = threading.Semaphore(AT_ONCE)
        self._bring_ahead()

    def ready(self, unit: Unit) -> bool:
        """Whether every file of the unit is here."""
        coming = self._bring_now(self._source.files_of(unit))
        for file in coming:
            if file.done():
                file.result()
        return all(file.done() for file in coming)

    def wait(self, unit: Unit) -> None:
        """Return when every file of the unit is here."""
        for file in self._bring_now(self._source.files_of(unit)):
            file.result()

    def finished(self, unit: Unit) -> None:
        """Delete every file that no unit needs any more."""
        for number in self._source.files_of(unit):
            users = self._users[number]
            users.discard(unit.first_document)
            if not users and not self._keep:
                (self._source.root / self._source.files[number].name).unlink(missing_ok=True)

    def close(self) -> None:
        """Give the downloads, which were told to stop, a moment to do so."""
        for thread in self._threads:
            thread.join(SECONDS_TO_STOP)

    def _bring_now(self, numbers: list[int]) -> list[Future[None]]:
        """Files that a unit waits for are not ahead of the work: others may come meanwhile."""
        for number in numbers:
            self._start(number)
        self._ahead -= set(numbers)
        self._bring_ahead()
        return [self._coming[number] for number in numbers]

    def _bring_ahead(self) -> None:
        for number in self._users:
            if len(self._ahead) >= AHEAD:
                return
            if number not in self._coming:
                self._ahead.add(number)
                self._start(number)

    def _start(self, number: int) -> None:
        if number not in self._coming:
            self._coming[number] = Future()
            # Daemons: a read that hangs must not hold up the end of the program.
            thread = threading.Thread(target=self._bring, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _bring(self, number: int) -> None:
        try:
            with self._at_once:
                self._downloads.fetch(self._source.files[number])
            self._coming[number].set_result(None)
        except BaseException as error:
            self._coming[number].set_exception(error)


def clean_downloads(folder: Path) -> None:
    """Delete listing, footers and empty folders of finished downloads; never a downloaded file."""
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
    """Let tasks that begin together ask the Hub once."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "lock"
    try:
        with lock.open("a+") as file:
            take_lock(file)
            try:
                yield
            finally:
                with suppress(OSError):
                    if list(folder.iterdir()) == [lock]:  # nothing came
                        lock.unlink()
    finally:
        remove_if_empty(folder)


def _ends_with(path: Path, tail: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(-len(tail), 2)
        return file.read() == tail
