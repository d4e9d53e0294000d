"""Unpacks compressed files that several units share, each in one pass, ahead of the workers.

Without this, a worker would decompress such a file from its start to reach its unit, and the cost
would grow with the square of the number of units. A thread writes the decompressed bytes of a unit
beside the units' folders; its worker reads them there, and they are deleted when it is finished.
"""

import logging
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from data_prep.hub.supply import FileProvider
from data_prep.preparation.unit import UnitWork
from data_prep.sources.byte_streams import Content, compression_of
from data_prep.sources.file_source import FileSource, Span, Unit

log = logging.getLogger(__name__)

_AnyWork = TypeVar("_AnyWork")
_CHUNK_BYTES = 1 << 20
_AHEAD = 2  # units that are unpacked before a worker is free for them
_FREE_PARTS = 4  # a part is unpacked only if the disk has room for this many of its size


def with_unpacked_files(work: _AnyWork, unit: Unit) -> _AnyWork | UnitWork:
    """`work`, reading from the unpacked parts of the unit where there are some."""
    if not isinstance(work, UnitWork) or not isinstance(work.source, FileSource):
        return work
    folder = _unpacked_folder(work, unit)
    if not folder.is_dir():
        return work
    return replace(work, source=replace(work.source, unpacked=folder))


def _unpacked_folder(work: UnitWork, unit: Unit) -> Path:
    # Named like a unit that is being made, so that a later start deletes it after a kill.
    return work.folder / f".{unit.key}.unpacked.partial"


@contextmanager
def unpacked_ahead(
    work: object, todo: list[Unit], provider: FileProvider, workers: int
) -> Iterator[FileProvider]:
    """A provider that also unpacks what the units of `todo` need, for as long as the block runs."""
    spans = _shared_spans(work.source, todo) if isinstance(work, UnitWork) else {}
    if not spans or not isinstance(work, UnitWork):
        yield provider
        return
    unpacking = _UnpackingProvider(work, todo, spans, provider, workers + _AHEAD)
    try:
        yield unpacking
    finally:
        unpacking.close()


def _shared_spans(source: object, todo: list[Unit]) -> dict[str, list[Span]]:
    """By the key of a unit, its spans of compressed files that other units read too."""
    if not isinstance(source, FileSource):
        return {}
    compressed = {number for number, file in enumerate(source.files) if compression_of(file.name)}
    readers = Counter(span.file for unit in todo for span in unit.spans)
    shared = {file for file, count in readers.items() if count > 1 and file in compressed}
    found = {unit.key: [span for span in unit.spans if span.file in shared] for unit in todo}
    return {key: spans for key, spans in found.items() if spans}


class _UnpackingProvider:
    """A FileProvider, called from one thread, that unpacks in another one, in the units' order."""

    def __init__(
        self,
        work: UnitWork,
        todo: list[Unit],
        spans: dict[str, list[Span]],
        provider: FileProvider,
        most: int,
    ) -> None:
        self._work = work
        self._spans = spans
        self._provider = provider
        self._waiting = [unit for unit in todo if unit.key in spans]
        self._most = most
        self._unpacked: dict[Unit, Future[None]] = {}
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def ready(self, unit: Unit) -> bool:
        """Whether the unit can be read, and its parts of compressed files are unpacked."""
        if not self._provider.ready(unit):
            return False
        self._start_ahead()
        unpacked = self._unpacked.get(unit)
        return unpacked is None or unpacked.done()

    def wait(self, unit: Unit) -> None:
        """Return when the unit can be read."""
        self._provider.wait(unit)
        self._start_ahead()
        unpacked = self._unpacked.get(unit)
        if unpacked is not None:
            unpacked.result()

    def finished(self, unit: Unit) -> None:
        """Delete what was unpacked for the unit."""
        if self._unpacked.pop(unit, None) is not None:
            shutil.rmtree(_unpacked_folder(self._work, unit), ignore_errors=True)
        self._provider.finished(unit)

    def close(self) -> None:
        """Stop unpacking, and delete what is left of it."""
        self._stopped.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
        for unit in self._unpacked:
            shutil.rmtree(_unpacked_folder(self._work, unit), ignore_errors=True)

    def _start_ahead(self) -> None:
        while self._waiting and len(self._unpacked) < self._most:
            unit = self._waiting[0]
            if not self._provider.ready(unit):
                return
            del self._waiting[0]
            self._unpacked[unit] = self._thread.submit(self._unpack, unit)

    def _unpack(self, unit: Unit) -> None:
        """Write the unit's parts of compressed files. What cannot be written, its worker reads."""
        source, folder = self._work.source, _unpacked_folder(self._work, unit)
        assert isinstance(source, FileSource)
        folder.mkdir(exist_ok=True)
        for span in self._spans[unit.key]:
            path = source.root / source.files[span.file].name
            try:
                self._copy(path, span, folder)
            except (OSError, ValueError) as error:
                # A bad file is named by the worker, whose records have their places.
                log.debug("%s is not unpacked ahead: %s", path, error)

    def _copy(self, path: Path, span: Span, folder: Path) -> None:
        """Write one part, whole or not at all. Raises: OSError or ValueError if it cannot be."""
        left = span.stop - span.start
        if shutil.disk_usage(folder).free < _FREE_PARTS * left:
            raise OSError(f"{folder} has no room for {_FREE_PARTS} times {left} bytes")
        temporary = folder / f"{span.file}.partial"
        with temporary.open("wb") as file, Content(path).open(span.start) as stream:
            while left and not self._stopped.is_set():
                chunk = stream.read(min(_CHUNK_BYTES, left))
                if not chunk:
                    raise ValueError(f"{path} is shorter than when it was planned")
                file.write(chunk)
                left -= len(chunk)
        temporary.rename(folder / str(span.file))
