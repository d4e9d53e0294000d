"""Tries again what failed for a moment: how often, how long to wait, and when to give up."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from data_prep.worker_processes import Interrupted

log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
_MAX_RETRY_AFTER = 600.0  # seconds; a server that asks for more counts as down


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again and when to give up. The defaults tolerate four minutes of no answer."""

    attempts: int = 10
    """Give up after N failures in a row without one new byte."""
    first_request_attempts: int = 3
    """The same for the first request, so that a missing network is reported within seconds."""
    first_wait: float = 1.0
    """Seconds before the second attempt. Each further wait is twice as long, up to `max_wait`."""
    max_wait: float = 60.0
    """Seconds."""
    connect_seconds: float = 10.0
    """An attempt fails after N seconds without a connection."""
    read_seconds: float = 30.0
    """An attempt fails after N seconds without a byte."""
    max_damaged: int = 3
    """Give up after a file has arrived N times with a wrong sha256."""


class RetryableError(Exception):
    """A failure that may be temporary; `wait` is the server's Retry-After in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class PermanentError(Exception):
    """A failure that will not change: its HTTP status and the Hub's error code."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}".rstrip())
        self.status = status
        self.code = code


class Retrying:
    """Repeats requests by a RetryPolicy until `stopping` is set."""

    place = ""
    """Where things are fetched from, for an error."""
    cure = ""
    """What to do when that fails for good."""

    def __init__(self, retries: RetryPolicy | None = None) -> None:
        self.retries = retries or RetryPolicy()
        self.stopping = threading.Event()  # set to end all requests with `Interrupted`

    def with_retries(
        self,
        name: str,
        attempt: Callable[[], _Result],
        attempts: int | None = None,
        reached: Callable[[], int] = lambda: 0,
    ) -> _Result:
        """The result of `attempt`, which is called again when it raises RetryableError.

        `reached` gives the number of bytes fetched so far. New bytes reset the count of failures.
        Raises: ValueError with the name and the reason after `attempts` failures in a row.
        """
        attempts = attempts or self.retries.attempts
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
                        f"{name} cannot be fetched from {self.place} "
                        f"({error}; {failures} attempts); {self.cure}"
                    ) from error
                self._wait(name, failures, attempts, error)

    def _wait(self, name: str, failures: int, attempts: int, error: RetryableError) -> None:
        backed_off = self.retries.first_wait * 2 ** (failures - 1)
        wait = max(min(backed_off, self.retries.max_wait), error.wait)
        log.warning(
            "%s: attempt %d of %d failed (%s); next attempt in %.3g s",
            name,
            failures,
            attempts,
            error,
            wait,
        )
        if self.stopping.wait(wait):
            raise Interrupted


def check_status(response: Any) -> None:
    """Raises: RetryableError or PermanentError if a response of HTTP is no success."""
    status = response.status_code
    if status in (200, 206):
        return
    if status in _RETRIED_STATUS:
        asked = response.headers.get("Retry-After", "")
        wait = min(float(asked), _MAX_RETRY_AFTER) if _is_number(asked) else 0.0
        raise RetryableError(f"status {status}", wait)
    raise PermanentError(status, response.headers.get("X-Error-Code", ""))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
