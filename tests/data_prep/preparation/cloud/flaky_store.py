"""A store in memory that fails as told, for tests of copies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from data_prep.hub.retries import RetryPolicy

IMPATIENT = RetryPolicy(attempts=4, first_request_attempts=2, first_wait=0.001, max_wait=0.002)


class FlakyStore(MemoryFileSystem):
    """flaky://: `on_read` may raise, change the store, or change what is read."""

    protocol = "flaky"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    reads: ClassVar[list[tuple[str, int, int]]] = []
    on_read: Callable[[str, int, bytes], bytes] | None = None
    more_info: Callable[[str], dict[str, Any]] = staticmethod(lambda path: {})

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {**super().info(path, **kwargs), **FlakyStore.more_info(path)}

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        found = super().find(path, *args, **kwargs)
        return {name: {**info, **FlakyStore.more_info(name)} for name, info in found.items()}

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        FlakyStore.reads.append((path, start, end))
        content = super().cat_file(path, start, end)
        return content if FlakyStore.on_read is None else FlakyStore.on_read(path, start, content)


@contextmanager
def flaky_store(files: dict[str, bytes]) -> Iterator[FlakyStore]:
    """A fresh store with these files, by path."""
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    FlakyStore.store, FlakyStore.pseudo_dirs, FlakyStore.reads = {}, [""], []
    FlakyStore.on_read, FlakyStore.more_info = None, lambda path: {}
    store = FlakyStore()
    for path, content in files.items():
        store.pipe_file(path, content)
    yield store


def files_below(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by path, as `flaky_store` takes them."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {f"/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths}
