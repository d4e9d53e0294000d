"""Downloads files over HTTP: with retries, resume, and a check of each file's sha256.

A file has its final name only when it is complete. The downloader of huggingface_hub (2.4.0) is not
used: it fails at the first status 503 of a body, discards a partial file when the connection is
reset, and compares only sizes, so a flipped byte would get into the shards.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.hub.retries import (
    PermanentError,
    RetryableError,
    Retrying,
    RetryPolicy,
    check_status,
)
from data_prep.worker_processes import Interrupted
from storage.atomic import sync_file, sync_folder

log = logging.getLogger(__name__)

_HASH_CHUNK = 1 << 22
LOCAL_FILES = "or give local files (text.py; fineweb.py --source; tinystories.py --train-files)"
CURE = f"check the network and run it again: it continues where it stopped; {LOCAL_FILES}"


def partial_of(path: Path) -> Path:
    """The path of a file while it is incomplete."""
    return path.with_name(f".{path.name}.partial")


@dataclass(frozen=True)
class RemoteFile:
    """One file on a server: its name in messages, its address, and its expected content."""

    name: str
    url: str
    size: int
    sha256: str


class Downloader(Retrying):
    """HTTP GET with the Hub's headers, repeated by a RetryPolicy until the answer is right."""

    place = "the Hub"
    cure = CURE

    def __init__(self, endpoint: str | None = None, retries: RetryPolicy | None = None) -> None:
        from huggingface_hub import constants  # takes a moment, and local files do not need it

        super().__init__(retries)
        self.endpoint = endpoint or constants.ENDPOINT

    @contextmanager
    def answer(self, url: str, **headers: str) -> Iterator[Any]:
        """A successful response with unread body. Raises: RetryableError or PermanentError."""
        from huggingface_hub import get_session
        from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
        from huggingface_hub.utils import build_hf_headers

        connect, read = self.retries.connect_seconds, self.retries.read_seconds
        # Without compression, so that byte counts and ranges are those of the file.
        sent = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
        timeout = (connect, read, read, connect)  # connect, read, write, connection pool
        try:
            with get_session().stream(
                "GET",
                url,
                headers=sent,
                timeout=timeout,
                follow_redirects=True,  # to the CDN
            ) as response:
                check_status(response)
                yield response
        except HTTPError as error:
            raise RetryableError(str(error) or type(error).__name__) from error
        except ConnectionError as error:  # huggingface_hub raises this if HF_HUB_OFFLINE is set
            shown, reason = url[:200], str(error)[:200]
            raise ValueError(f"{shown} was not requested ({reason}); {LOCAL_FILES}") from error

    def body(self, url: str, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of a file; None if the server ignores ranges.

        Raises: RetryableError or PermanentError.
        """
        with self.answer(url, Range=f"bytes={start}-{stop - 1}") as response:
            if response.status_code != 206:
                return None
            content = b"".join(response.iter_raw())
        if len(content) != stop - start:
            raise RetryableError(f"{len(content)} bytes came of {stop - start}")
        return content

    def fetch(self, file: RemoteFile, path: Path) -> None:
        """Download a file to `path` and check it, unless the right file is there already.

        Raises: ValueError naming the file if that fails.
        """
        if path.is_file() and self._matches(file, path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_of(path)
        for _ in range(self.retries.max_damaged):
            start = time.monotonic()
            self.with_retries(
                file.name, lambda: self._resume(file, partial), reached=lambda: _size(partial)
            )
            if self._matches(file, partial):
                sync_file(partial)
                partial.replace(path)
                sync_folder(path.parent)  # so that the rename survives a power failure
                seconds = time.monotonic() - start
                log.info("%s: %.1f MB in %.1f s, checked", file.name, file.size / 1e6, seconds)
                return
            log.warning(
                "%s: arrived damaged (wrong sha256); it is fetched again from its start", path
            )
            partial.unlink()
        raise ValueError(
            f"{file.name} arrived {self.retries.max_damaged} times with another sha256 than the "
            f"Hub's {file.sha256}: it is damaged on the way or there; nothing of it was used; "
            f"{CURE}"
        )

    def _matches(self, file: RemoteFile, path: Path) -> bool:
        if path.stat().st_size != file.size:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as content:
            while chunk := content.read(_HASH_CHUNK):
                if self.stopping.is_set():
                    raise Interrupted
                digest.update(chunk)
        return digest.hexdigest() == file.sha256

    def _resume(self, file: RemoteFile, partial: Path) -> None:
        """Request the missing bytes of `partial`. Raises: RetryableError if some still are."""
        start = _size(partial)
        if start > file.size:
            partial.unlink()
            start = 0
        if start == file.size and start:
            return
        ranged = {"Range": f"bytes={start}-"} if start else {}
        try:
            with self.answer(file.url, **ranged) as response:
                if response.status_code != 206:
                    start = 0  # the server ignores ranges and sends the whole file
                elif response.headers.get("Content-Range", "").split("-")[0] != f"bytes {start}":
                    raise RetryableError("the server sent another range than asked for")
                start = self._write(response, file, partial, start)
        except PermanentError as error:
            raise ValueError(f"{file.name} {permanent_error_text(error)}") from error
        if start < file.size:
            raise RetryableError(f"the body ended at byte {start:,} of {file.size:,}")

    def _write(self, response: Any, file: RemoteFile, partial: Path, start: int) -> int:
        with _writable(partial, "ab" if start else "wb") as write:
            for block in response.iter_raw():
                if self.stopping.is_set():
                    raise Interrupted
                start += len(block)
                if start > file.size:
                    partial.unlink()
                    raise RetryableError(f"more than its {file.size:,} bytes came")
                write(block)
        return start


@contextmanager
def _writable(path: Path, mode: str) -> Iterator[Callable[[bytes], object]]:
    """A function that writes to the file. Raises: ValueError with the cure if the disk fails."""
    with path.open(mode) as file:

        def write(block: bytes) -> None:
            try:
                file.write(block)
                file.flush()
            except OSError as error:
                raise ValueError(
                    f"{path} cannot be written ({error}); make room and run it again: it "
                    "continues where it stopped"
                ) from error

        yield write


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def permanent_error_text(error: PermanentError) -> str:
    """The reason of a permanent error, and the cure."""
    if error.status in (401, 403):
        return (
            f"needs a login (status {error}): accept the terms on its page on the Hub, then "
            f"`hf auth login`; {LOCAL_FILES}"
        )
    if error.status == 404:
        return f"is not on the Hub (status {error}); check its name and --revision"
    return f"is refused by the Hub (status {error}); {CURE}"
