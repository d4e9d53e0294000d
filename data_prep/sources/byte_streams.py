"""Files as streams of bytes, decompressed where their name ends in .gz, .bz2, .xz or .zst."""

import atexit
import bz2
import lzma
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import pyarrow

_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16  # decompressed at a time: a damaged file can be used up to its last block
_ZSTD_MEMORY = "Frame requires too much memory"  # zstd's words for a window above 128 MiB
_COPY_AGAIN = "copy or make it again"


class TruncatedFile(ValueError):
    """A compressed file ends too early. What was read before is right."""

    rest = 0
    """Bytes that could be read behind the last complete document."""


class _ByteStream(Protocol):
    """The bytes of a file from some position on."""

    def read(self, count: int) -> bytes:
        """At most `count` bytes; none at the end. Raises: ValueError that names the file."""
        ...


class _Member(Protocol):
    """A decompressor of one gzip member, or of one bzip2 or xz stream."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipMember:
    """zlib's decompressor with the interface of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(31)  # with a header of gzip
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        block = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = not self._zlib.unconsumed_tail and len(block) < max_length
        return block


def _members(file: BinaryIO, start: Callable[[], _Member]) -> Iterator[bytes]:
    """The blocks of all members of a file; zeros behind a member are padding, as for gzip and xz.

    Raises: EOFError if the file ends inside a member.
    """
    member: _Member | None = None
    data, found = b"", False
    while True:
        if not data and (member is None or member.needs_input):
            data = file.read(_BLOCK_BYTES)
            if not data:
                break
        if member is None:
            data = data.lstrip(b"\0") if found else data
            if not data:
                continue
            member, found = start(), True
        block = member.decompress(data, _BLOCK_BYTES)
        data = b""
        if block:
            yield block
        if member.eof:
            data, member = member.unused_data, None
    if member is not None or not found:
        raise EOFError("it ends too early")


def _zstd_frames(file: BinaryIO) -> Iterator[bytes]:
    """The blocks of all frames of a file. Raises: EOFError if it ends inside a frame."""
    if not os.fstat(file.fileno()).st_size:
        raise EOFError("it ends too early")
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
    while True:
        try:
            block = stream.read(_BLOCK_BYTES)
        except OSError as error:
            if "Truncated" in str(error):
                raise EOFError("it ends too early") from error
            raise
        if not block:
            return
        yield block


_COMPRESSIONS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    ".gz": lambda file: _members(file, _GzipMember),
    ".bz2": lambda file: _members(file, bz2.BZ2Decompressor),
    ".xz": lambda file: _members(file, lzma.LZMADecompressor),
    ".zst": _zstd_frames,
}


def compression_of(name: str) -> str:
    """The suffix of `name` that says how it is compressed, in lower case; "" if it is not."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in _COMPRESSIONS else ""


def compressions() -> tuple[str, ...]:
    """The suffixes of compressed files that can be read."""
    return tuple(_COMPRESSIONS)


class _PlainStream:
    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._file = path.open("rb")
        self._file.seek(start)

    def read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            raise ValueError(f"{self._path} cannot be read ({error}); {_COPY_AGAIN}") from error

    def close(self) -> None:
        self._file.close()


class _CompressedStream:
    """The decompressed bytes of a file, from its start."""

    def __init__(self, path: Path) -> None:
        self.position = 0
        self.key = _key(path)
        self.at_end = False
        self._path = path
        self._file = path.open("rb")
        self._blocks = _COMPRESSIONS[compression_of(path.name)](self._file)
        self._block = memoryview(b"")

    def read(self, count: int) -> bytes:
        if not self._block and count:
            self._block = memoryview(self._next_block())
            self.at_end = not self._block
        found = self._block[:count]
        self._block = self._block[count:]
        self.position += len(found)
        return bytes(found)

    def _next_block(self) -> bytes:
        try:
            return next(self._blocks, b"")
        except EOFError as error:
            raise TruncatedFile(f"{self._path} is incomplete ({error}); {_COPY_AGAIN}") from error
        except (OSError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
            cure = _COPY_AGAIN
            if _ZSTD_MEMORY in str(error):
                cure = f"unpack it with `zstd -d --long=31 {self._path.name}` and give that file"
            elif not self.position:
                cure = f"take {self._path.suffix} off its name if it is not compressed, or {cure}"
            raise ValueError(f"{self._path} cannot be unpacked ({error}); {cure}") from error

    def close(self) -> None:
        self._file.close()


class _IdleStream:
    """Keeps the compressed file that was read last, to continue there and not at its start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stream: _CompressedStream | None = None
        self._closes_at_exit = False

    def take(self, path: Path, start: int) -> _CompressedStream:
        """A stream of the file at `start` or before it."""
        with self._lock:
            stream = self._stream
            if stream is not None and stream.key == _key(path) and stream.position <= start:
                self._stream = None
                return stream
        return _CompressedStream(path)

    def keep(self, stream: _CompressedStream) -> None:
        """Keep a stream that nobody reads any more, or close it if it is at its end."""
        if stream.at_end:
            stream.close()
            return
        self._replace(stream)
        if not self._closes_at_exit:
            self._closes_at_exit = True
            atexit.register(self._replace, None)

    def _replace(self, stream: _CompressedStream | None) -> None:
        with self._lock:
            before, self._stream = self._stream, stream
        if before is not None:
            before.close()


def _key(path: Path) -> tuple[object, ...]:
    found = path.stat()
    return path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_IDLE = _IdleStream()


@dataclass(frozen=True)
class Content:
    """The decompressed bytes of a file; a part of them may be in another file, unpacked already."""

    path: Path
    unpacked: Path | None = None
    first: int = 0
    """The position in the content at which `unpacked` begins."""

    @contextmanager
    def open(self, start: int = 0) -> Iterator[_ByteStream]:
        """The bytes from `start` on.

        After one part of a compressed file, the next part is read without the bytes before it.
        """
        if self.unpacked is not None or not compression_of(self.path.name):
            plain = _PlainStream(self.unpacked or self.path, start - self.first)
            try:
                yield plain
            finally:
                plain.close()
            return
        stream = _IDLE.take(self.path, start)
        try:
            _skip_to(stream, start, self.path)
            yield stream
        except GeneratorExit:  # the reader has seen enough
            _IDLE.keep(stream)
            raise
        except BaseException:
            stream.close()
            raise
        _IDLE.keep(stream)


def _skip_to(stream: _CompressedStream, start: int, path: Path) -> None:
    while stream.position < start:
        if not stream.read(min(_CHUNK_BYTES, start - stream.position)):
            raise became_shorter(path)


def became_shorter(path: Path) -> ValueError:
    """The error for a file that ends before a place that it had when it was planned."""
    return ValueError(
        f"{path} is shorter than when it was planned; it must not change while it is prepared: "
        "start again"
    )
