"""A store of files by URL: a file system of fsspec, with retries and errors as sentences."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from data_prep.hub.retries import PermanentError, RetryableError, Retrying, RetryPolicy
from data_prep.preparation.cloud.addresses import WEB, protocol_of, without_credentials
from data_prep.preparation.cloud.web_files import WebFiles

_Result = TypeVar("_Result")
_CHUNK_BYTES = 1 << 20
_LOGIN_STATUS = (401, 403)
_GONE_STATUS = (404, 410)
_LOGIN_NAMES = ("Credential", "Authent", "Forbidden", "Gated", "AccessDenied")
# What a library raises for its own mistakes and for wrong options: again would be the same.
_NOT_TRANSIENT = (TypeError, AttributeError, LookupError, ValueError, NotImplementedError)
_AWS = "`aws configure`, or FSSPEC_S3_ANON=true for a public bucket"
_GOOGLE = "`gcloud auth application-default login`, or FSSPEC_GS_TOKEN=anon for a public bucket"
_AZURE = "`az login`, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
_WEB = "https://USER:PASSWORD@HOST/..., or a signed address"
_LOGINS = {
    **dict.fromkeys(("s3", "s3a"), _AWS),
    **dict.fromkeys(("gs", "gcs"), _GOOGLE),
    **dict.fromkeys(("az", "abfs", "abfss"), _AZURE),
    **dict.fromkeys(WEB, _WEB),
    "hf": "`hf auth login`, and the terms of its page on the Hub accepted",
}
_DIGESTS = ("md5Hash",)  # of Google; of others, what tells a change is no digest, or not always
_MARKS = ("ETag", "etag", *_DIGESTS, "generation", "blob_id", "checksum", "uid")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class StoredFile:
    """A file of a store, and what tells whether it has changed."""

    store: "Store"
    path: str
    """As the store names it. It may hold credentials."""
    copy: str
    """The name of its copy below the folder of all copies."""
    size: int | None
    stamp: dict[str, Any]
    ranges: bool
    """Whether parts can be read."""

    @property
    def shown(self) -> str:
        """Its URL without credentials."""
        return self.store.shown(self.path)


class Store(Retrying):
    """Requests to the file system that a URL names."""

    place = "its server"
    cure = "check the network and run it again: it continues where it stopped"

    def __init__(self, url: str, retries: RetryPolicy | None = None) -> None:
        """Raises: ValueError if its file system is not known, not installed or not configured."""
        super().__init__(retries)
        self.protocol = protocol_of(url)
        self._files, self.path = self._opened(url)
        self._files.invalidate_cache()
        self._was_reached = False

    def _opened(self, url: str) -> tuple[Any, str]:
        if self.protocol in WEB:
            return WebFiles(self.retries), url
        import fsspec  # takes a moment, and few need it
        from fsspec.registry import known_implementations, registry

        shown = without_credentials(url)
        if self.protocol not in {*known_implementations, *registry}:
            raise ValueError(
                f"{shown}: {self.protocol}:// is no kind of address that fsspec knows; "
                f"give {', '.join(f'{name}://' for name in ('s3', 'gs', 'az', 'hf', 'https'))}, "
                "or copy the files"
            )
        try:
            return fsspec.url_to_fs(url)
        except ImportError as error:
            raise _not_installed(shown, error) from error
        except Exception as error:  # of many libraries
            raise ValueError(str(self._as_user_error(shown, error))) from error

    def shown(self, path: str) -> str:
        """The URL of a path, without credentials."""
        known = path if "://" in path else f"{self.protocol}://{path.lstrip('/')}"
        return without_credentials(known)

    def info(self, path: str) -> dict[str, Any]:
        """What the store says of a file or folder now."""

        def ask() -> dict[str, Any]:
            self._files.invalidate_cache()
            return self._files.info(path)

        return self._asked(path, ask)

    def find(self, path: str, depth: int | None) -> dict[str, dict[str, Any]]:
        """The files below a folder, by path."""
        return self._asked(path, lambda: self._files.find(path, maxdepth=depth, detail=True))

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes of a file, perhaps fewer than asked for. Raises: RetryableError or ValueError."""
        return self._tried(path, lambda: self._files.cat_file(path, start=start, end=stop))

    def chunks(self, path: str) -> Iterator[bytes]:
        """A whole file. Raises: RetryableError or ValueError."""
        if isinstance(self._files, WebFiles):
            content = self._files.chunks(path)
        else:
            file = self._tried(path, lambda: self._files.open(path, "rb"))
            content = iter(lambda: file.read(_CHUNK_BYTES), b"")
        while (chunk := self._tried(path, lambda: next(content, None))) is not None:
            yield chunk

    def stored_file(self, path: str, copy: str, info: dict[str, Any]) -> StoredFile:
        """A file by what the store says of it."""
        size, stamp = info.get("size"), _stamp(info)
        return StoredFile(self, path, copy, size, stamp, info.get("ranges", size is not None))

    def _asked(self, path: str, request: Callable[[], _Result]) -> _Result:
        # At first fewer times, so that a missing network is reported within seconds.
        attempts = None if self._was_reached else self.retries.first_request_attempts
        found = self.with_retries(self.shown(path), lambda: self._tried(path, request), attempts)
        self._was_reached = True
        return found

    def _tried(self, path: str, request: Callable[[], _Result]) -> _Result:
        """Raises: RetryableError for what may be temporary, else ValueError."""
        try:
            return request()
        except RetryableError as error:
            raise RetryableError(without_credentials(str(error)), error.wait) from error
        except Exception as error:  # of many libraries
            raise self._as_user_error(self.shown(path), error) from error

    def _as_user_error(self, shown: str, error: Exception) -> Exception:
        status = _status(error)
        reason = _reason(error)
        if isinstance(error, ImportError):
            return _not_installed(shown, error)
        if isinstance(error, FileNotFoundError) or status in _GONE_STATUS:
            return ValueError(f"there is no {shown}; check its name ({reason})")
        names = [kind.__name__ for kind in type(error).__mro__]
        login = any(part in name for part in _LOGIN_NAMES for name in names)
        login = login or str(error).startswith("Forbidden")  # an OSError of gcsfs
        if login or isinstance(error, PermissionError) or status in _LOGIN_STATUS:
            cure = _LOGINS.get(self.protocol, "its library's documentation says how to log in")
            return ValueError(f"{shown} may not be read ({reason}); give a login: {cure}")
        if "OfflineModeIsEnabled" in names:  # of huggingface_hub
            return ValueError(f"{shown} was not requested ({reason})")
        if isinstance(error, (PermanentError, *_NOT_TRANSIENT)):
            return ValueError(f"{shown} cannot be read ({reason}); check the address")
        return RetryableError(reason)


def _status(error: Exception) -> int | None:
    """The HTTP status of an error of any library; None if it has none."""
    response = getattr(error, "response", None)
    places = (error, response)
    found = [getattr(place, name, None) for place in places for name in ("status", "status_code")]
    found.append(getattr(error, "code", None))
    return next((value for value in found if isinstance(value, int)), None)


def _reason(error: Exception) -> str:
    said = without_credentials(" ".join(str(error).split()))[:300]
    if isinstance(error, PermanentError):
        return f"status {said}"
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _not_installed(shown: str, error: ImportError) -> ValueError:
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    package = (cause.name or "").partition(".")[0]
    if not package:
        return ValueError(f"{shown} needs a package that is not installed ({error})")
    return ValueError(
        f"{shown} needs the package {package}, which is not installed; `pip install {package}`"
    )


def _stamp(info: dict[str, Any]) -> dict[str, Any]:
    """What tells that a file has changed: its size, and marks or times of its store."""
    stamp: dict[str, Any] = {"size": info.get("size")}
    lfs = info.get("lfs")
    if lfs:
        stamp["sha256"] = lfs["sha256"]
    md5 = (info.get("content_settings") or {}).get("content_md5")  # of Azure, as bytes
    if md5:
        stamp["md5Hash"] = b64encode(bytes(md5)).decode()
    for name in (*_MARKS, *_TIMES):
        value = info.get(name)
        if value is not None:
            stamp[name] = str(value.timestamp() if hasattr(value, "timestamp") else value)
    return stamp


def differ(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two stamps are of different contents, by what both of them have."""
    return any(one[name] != other[name] for name in one.keys() & other.keys())
