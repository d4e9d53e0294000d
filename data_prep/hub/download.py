"""Files over HTTP with patience: retried, resumed, checked, and whole under their name or absent.

The Hub's own downloader gives up on the first 503 of a body, throws a partial file away when the
connection is reset, and compares sizes only; a flipped byte would go into the shards.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from huggingface_hub.utils import build_hf_headers

from data_prep.sources.file_source import Interrupted
from storage.atomic import sync_file, sync_folder

log = logging.getLogger(__name__)
Result = TypeVar("Result")

RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for more is as good as down
HASH_CHUNK = 1 << 22
AT_HAND = "or name files at hand (fineweb.py --source, tinystories.py --train-files)"
CURE = f"check the network and run it again: it goes on where it stopped; {AT_HAND}"


def partial_of(path: Path) -> Path:
    """Where a file lies until it is whole."""
    return path.with_name(f".{path.name}.partial")


@dataclass(frozen=True)
class RetryPolicy:
    """How long a fault is borne; the defaults ride out about four minutes without any answer."""

    attempts: int = 10
    """Failures in a row without one new byte after which it gives up."""
    first_attempts: int = 3
    """The same for the first word to the Hub: a missing network is said within seconds."""
    first_wait: float = 1.0
    """Seconds before the second attempt; each further wait is twice as long."""
    longest_wait: float = 60.0
    """Seconds."""
    connect_seconds: float = 10.0
    """Without a connection for this long is a failure."""
    read_seconds: float = 30.0
    """Without a byte for this long is a failure."""
    damaged: int = 3
    """Times a file may arrive whole with a wrong digest."""


class RetryableError(Exception):
    """A failure that may pass; `wait` is how long the server asked to be left alone."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class PermanentError(Exception):
    """An answer that will not change: its status and the Hub's own code for the reason."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}".rstrip())
        self.status = status
        self.code = code


@dataclass(frozen=True)
class RemoteFile:
    """One file: what errors call it, where it is, and what it must be."""

    name: str
    url: str
    size: int
    sha256: str


class Downloader:
    """HTTP GET with the Hub's headers, until the answer is right or patience ends."""

    def __init__(self, endpoint: str | None = None, patience: RetryPolicy | None = None) -> None:
        self.endpoint = endpoint or constants.ENDPOINT
        self.patience = patience or RetryPolicy()
        self.stopping = threading.Event()

    def patiently(
        self,
        name: str,
        attempt: Callable[[], Result],
        attempts: int | None = None,
        reached: Callable[[], int] = lambda: 0,
    ) -> Result:
        """What `attempt` returns once it does not raise RetryableError.

        `reached` is how many bytes are there: a failure after new bytes starts the count anew.
        Raises: ValueError naming what failed and why once `attempts` in a row have.
        """
        attempts = attempts or self.patience.attempts
        failures, best = 0, reached()
        while True:
            try:
                return attempt()
            except RetryableError as error:
                now = reached()
                failures = 1 if now > best else failures + 1
                best = max(best, now)
                if failures >= attempts:
                    raise ValueError(
                        f"{name} cannot be had from the Hub ({error}; {failures} attempts); {CURE}"
                    ) from error
                self._wait(name, failures, attempts, error)

    def _wait(self, name: str, failures: int, attempts: int, error: RetryableError) -> None:
        backed_off = self.patience.first_wait * 2 ** (failures - 1)
        wait = max(min(backed_off, self.patience.longest_wait), error.wait)
        log.warning(
            "%s: attempt %d of %d failed (%s); the next in %.3g s",
            name,
            failures,
            attempts,
            error,
            wait,
        )
        if self.stopping.wait(wait):
            raise Interrupted

    @contextmanager
    def answer(self, url: str, **headers: str) -> Iterator[Any]:
        """A successful response, its body not yet read. Raises: RetryableError or Refused."""
        connect, read = self.patience.connect_seconds, self.patience.read_seconds
        sent = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
        timeout = (connect, read, read, connect)
        try:
            with get_session().stream(
                "GET", url, headers=sent, timeout=timeout, follow_redirects=True
            ) as response:
                _check_status(response)
                yield response
        except HTTPError as error:
            raise RetryableError(str(error) or type(error).__name__) from error
        except ConnectionError as error:  # the Hub's library: HF_HUB_OFFLINE is set
            raise ValueError(f"{url} was not asked for ({error}); {AT_HAND}") from error

    def body(self, url: str, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop); None if the server ignores ranges.

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
        """Make `path` the file: by its digest there already, or downloaded, checked and renamed.

        Raises: ValueError naming the file if it cannot be had whole.
        """
        if path.is_file() and self._is_right(file, path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_of(path)
        for _ in range(self.patience.damaged):
            start = time.monotonic()
            self.patiently(
                file.name, lambda: self._go_on(file, partial), reached=lambda: _size(partial)
            )
            if self._is_right(file, partial):
                sync_file(partial)
                partial.replace(path)
                sync_folder(path.parent)
                seconds = time.monotonic() - start
                log.info("%s: %.1f MB in %.1f s, checked", file.name, file.size / 1e6, seconds)
                return
            log.warning("%s: arrived damaged (wrong sha256); fetched again from its start", path)
            partial.unlink()
        raise ValueError(
            f"{file.name} arrived {self.patience.damaged} times with another sha256 than the Hub's "
            f"{file.sha256}: it is damaged on the way or there; nothing of it was used; {CURE}"
        )

    def _is_right(self, file: RemoteFile, path: Path) -> bool:
        if path.stat().st_size != file.size:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as content:
            while chunk := content.read(HASH_CHUNK):
                if self.stopping.is_set():
                    raise Interrupted
                digest.update(chunk)
        return digest.hexdigest() == file.sha256

    def _go_on(self, file: RemoteFile, partial: Path) -> None:
        """Ask for what is missing of `partial`. Raises: RetryableError if something still is."""
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
                    start = 0  # the whole file comes, whatever was asked for
                elif response.headers.get("Content-Range", "").split("-")[0] != f"bytes {start}":
                    raise RetryableError("the server sent another range than asked for")
                start = self._write(response, file, partial, start)
        except PermanentError as error:
            raise ValueError(f"{file.name} {refusal(error)}") from error
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
    """A file's write method. Raises: ValueError with the cure if the disk refuses."""
    with path.open(mode) as file:

        def write(block: bytes) -> None:
            try:
                file.write(block)
                file.flush()
            except OSError as error:
                raise ValueError(
                    f"{path} cannot be written ({error}); make room and run it again: it goes on "
                    "where it stopped"
                ) from error

        yield write


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_status(response: Any) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in RETRIED_STATUS:
        asked = response.headers.get("Retry-After", "")
        wait = min(float(asked), LONGEST_RETRY_AFTER) if _is_number(asked) else 0.0
        raise RetryableError(f"status {status}", wait)
    raise PermanentError(status, response.headers.get("X-Error-Code", ""))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def refusal(error: PermanentError) -> str:
    """Why an answer is final, and the cure."""
    if error.status in (401, 403):
        return (
            f"needs a login (status {error}): accept the terms on its page on the Hub, then "
            f"`hf auth login`; {AT_HAND}"
        )
    if error.status == 404:
        return f"is not on the Hub (status {error}); check its name and --revision"
    return f"is refused by the Hub (status {error}); {CURE}"
