"""Copies all files of a source in a few threads, after a look at the room on the disk."""

import logging
import shutil
import sys
import threading
from collections import deque
from pathlib import Path

from tqdm import tqdm

from data_prep.preparation.cloud.copying import Copies
from data_prep.preparation.cloud.stores import StoredFile
from data_prep.worker_processes import Interrupted
from storage.terminal.quantities import counted, data_size

log = logging.getLogger(__name__)

_COPIES_AT_ONCE = 8
_SECONDS_BETWEEN_LOOKS = 0.1
_SHOWN_BYTES = 1 << 26  # copying more has a progress bar
_SECONDS_BETWEEN_LINES = 30.0  # of the bar when standard error is a file


def copy_all(copies: Copies, files: list[StoredFile]) -> None:
    """Copy what is not here yet. Raises: ValueError for the first file that cannot be copied."""
    _check_case(copies.folder, files)
    copies.drop_others(files)
    missing = [file for file in files if not copies.is_complete(file)]
    left = sum(map(copies.missing_bytes, missing))
    here = len(files) - len(missing)
    log.info(
        "%s",
        f"copying {counted(len(missing), 'file')} ({data_size(left)}) to {copies.folder}"
        + (f"; {counted(here, 'file')} of an earlier start are kept" if here else ""),
    )
    free = shutil.disk_usage(copies.folder).free
    if left > free:
        raise ValueError(
            f"{copies.folder} has {data_size(free)} free, but the files have {data_size(left)}; "
            "make room, or choose an --out (of a check: TMPDIR) on another disk"
        )
    _Copying(copies, missing, left).run()


def _check_case(folder: Path, files: list[StoredFile]) -> None:
    """Raises: ValueError if two names differ by case only, and the disk takes them for one."""
    by_name: dict[str, StoredFile] = {}
    for file in files:
        other = by_name.setdefault(file.copy.casefold(), file)
        if other != file and _ignores_case(folder):
            raise ValueError(
                f"{other.shown} and {file.shown} differ by case only, which {folder} does not keep "
                "apart; rename one, or choose an --out on another disk"
            )


def _ignores_case(folder: Path) -> bool:
    return (folder / "lock").exists() and (folder / "LOCK").exists()


class _Copying:
    """Copies files in a few threads."""

    def __init__(self, copies: Copies, files: list[StoredFile], left: int) -> None:
        self._copies = copies
        self._files = files
        self._waiting = deque(files)
        self._left = left
        self._errors: list[BaseException] = []

    def run(self) -> None:
        """Return when all are copied. Raises: the first error."""
        for file in self._files:
            file.store.stopping = self._copies.stopping
        # Daemon threads: a read that hangs must not delay the end of the program.
        count = min(_COPIES_AT_ONCE, len(self._files))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        interval = 0.2 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
        shape = {"unit": "B", "unit_scale": True, "mininterval": interval, "desc": "copying"}
        try:
            with tqdm(total=self._left, disable=self._left < _SHOWN_BYTES, **shape) as bar:
                for thread in threads:
                    while thread.is_alive():
                        thread.join(_SECONDS_BETWEEN_LOOKS)
                        bar.update(self._copies.take_copied())
        finally:
            self._copies.stopping.set()
        if self._errors:
            raise self._errors[0]

    def _work(self) -> None:
        while self._waiting and not self._errors:
            try:
                file = self._waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                self._copies.copy(file)
            except Interrupted:
                return
            except BaseException as error:
                self._errors.append(error)
                self._copies.stopping.set()
