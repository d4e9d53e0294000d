"""Proofs of a resume whose ranks are forks of their launcher, and start in milliseconds."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.launching import FORKING_LAUNCHER, REPO
from train.recovery.resume_proof import kills
from train.recovery.resume_proof.kills import Job


@contextmanager
def forked_ranks() -> Iterator[None]:
    """Every `Job` in the block starts its launcher by tests/programs/forking_launcher.py."""
    plain = Job.__init__

    def made(job: Job, *words: Any, **more: Any) -> None:
        plain(job, *words, **more)
        launcher = job.command.index(str(REPO / "parallel/launcher.py"))
        job.command.insert(launcher, str(REPO / FORKING_LAUNCHER))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "__init__", made)
        patch.setattr(kills, "workers_of", _forks_of)
        yield


def _forks_of(launcher: int) -> dict[int, int]:
    """As `workers_of`, but by the names that forks give themselves: they have no own environ."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended since the listing
            first, _, rest = stat.read_text().rpartition(")")
            process, _, name = first.partition(" (")
            state, parent = rest.split()[:2]
            if name.startswith("rank ") and parent == str(launcher) and state != "Z":
                found[int(name.removeprefix("rank "))] = int(process)
    return found
