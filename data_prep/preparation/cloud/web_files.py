"""Files of web servers by the calls of a file system of fsspec, read as the Hub's are.

fsspec's own needs aiohttp. A folder is an address that ends in /, whose page links to its files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from data_prep.hub.retries import PermanentError, RetryableError, RetryPolicy, check_status

_NO_SUCH_RANGE = 416  # of an empty file


class WebFiles:
    """Information, ranges and folders of addresses. A path is a whole URL."""

    def __init__(self, retries: RetryPolicy) -> None:
        self._retries = retries

    def invalidate_cache(self) -> None:
        """Nothing is cached."""

    def info(self, path: str) -> dict[str, Any]:
        """Size, ETag and time of change; `ranges`: parts can be read; `page`: it is HTML."""
        found: dict[str, Any] = {"name": path, "size": None, "type": "file", "ranges": False}
        if path.endswith("/"):
            return {**found, "type": "directory"}
        try:
            # One byte, and not HEAD: a signed address is good for GET only.
            with self._answer(path, Range="bytes=0-0") as response:
                headers = response.headers
                found["page"] = "html" in headers.get("Content-Type", "")
                # Of a file that is compressed on the way, its size is not known.
                if headers.get("Content-Encoding", "identity") == "identity":
                    found["ranges"] = response.status_code == 206
                    where = ("Content-Range", "") if found["ranges"] else ("Content-Length", "")
                    found["size"] = _number(headers.get(*where).rpartition("/")[2])
                kept = {name: headers.get(name) for name in ("ETag", "Last-Modified")}
        except PermanentError as error:
            if error.status != _NO_SUCH_RANGE:
                raise
            return {**found, "size": 0}
        return {**found, **{name: value for name, value in kept.items() if value}}

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`."""
        with self._answer(path, Range=f"bytes={start}-{end - 1}") as response:
            sent = response.headers.get("Content-Range", "").split("-")[0]
            if response.status_code != 206 or sent != f"bytes {start}":
                raise RetryableError("the server sent another range than asked for")
            return b"".join(response.iter_raw())

    def chunks(self, path: str) -> Iterator[bytes]:
        """The whole file, for servers that send no parts."""
        with self._answer(path) as response:
            yield from response.iter_bytes()

    def find(self, path: str, maxdepth: int | None, detail: bool = True) -> dict[str, Any]:
        """The files in a folder and, to this depth, in those below, with what is known of each."""
        found: dict[str, Any] = {}
        waiting = [(path, 1)]
        for folder, depth in waiting:
            for entry in self._listed(folder):
                if entry["type"] == "file":
                    found[entry["name"]] = entry
                elif maxdepth is None or depth < maxdepth:
                    waiting.append((entry["name"], depth + 1))
        return dict(sorted(found.items()))

    def _listed(self, path: str) -> list[dict[str, Any]]:
        """The files and folders that the page of a folder links to."""
        folder = path.split("?")[0].rstrip("/") + "/"
        with self._answer(folder) as response:
            response.read()
            is_page = "html" in response.headers.get("Content-Type", "")
            page = _Links(response.text if is_page else "")
        links = {urljoin(folder, link).split("?")[0].split("#")[0] for link in page.links}
        below = {link[len(folder) :] for link in links if link.startswith(folder)}
        names = {name.partition("/")[0] + ("/" if "/" in name else "") for name in below if name}
        kinds = {name: "directory" if name.endswith("/") else "file" for name in sorted(names)}
        return [{"name": folder + n, "size": None, "type": kind} for n, kind in kinds.items()]

    @contextmanager
    def _answer(self, url: str, **headers: str) -> Iterator[Any]:
        """A successful response with unread body. Raises: RetryableError or PermanentError."""
        from huggingface_hub import get_session
        from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

        connect, read = self._retries.connect_seconds, self._retries.read_seconds
        # Without compression, so that byte counts and ranges are those of the file.
        sent = {"Accept-Encoding": "identity", **headers}
        timeout = (connect, read, read, connect)  # connect, read, write, connection pool
        request: dict[str, Any] = {"headers": sent, "timeout": timeout, "follow_redirects": True}
        address, login = _without_login(url)
        if login is not None:
            request["auth"] = login
        try:
            with get_session().stream("GET", address, **request) as response:
                check_status(response)
                yield response
        except HTTPError as error:
            raise RetryableError(str(error) or type(error).__name__) from error


def _without_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """The address that is asked, and user and password: the client logs every address."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = login.partition(":")
    return parts._replace(netloc=host).geturl(), (unquote(user), unquote(password))


class _Links(HTMLParser):
    """The links of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
