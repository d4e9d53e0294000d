"""What every test needs: one thread a process, and no GPU tests where there is no GPU."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported anywhere: tests start several processes, and two cores are few.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is imported by a test is no business of the home folder.
os.environ["RATCHET_CACHE"] = f"{tempfile.gettempdir()}/ratchet-tests-{os.getpid()}"

import pytest
from hypothesis import settings

pytest_plugins = ["tests.fault_table"]

_GOLDEN = Path(__file__).parent / "golden"

# A busy machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: for a third of their time tests wait.

    They do so for processes that end, for disks and for clocks.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (cores or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch finds no CUDA device."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch  # costs two seconds, so only for those who ask

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_unconfigure() -> None:
    """Remove what the tests have imported."""
    shutil.rmtree(os.environ["RATCHET_CACHE"], ignore_errors=True)


def _recorded() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in _GOLDEN.rglob("*") if path.is_file()}


@pytest.fixture(scope="session", autouse=True)
def recorded_files_stay() -> Iterator[None]:
    """Fail if a test has changed what is recorded: whoever needs to write takes a copy."""
    before = _recorded()
    yield
    after = _recorded()
    changed = [str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p)]
    assert [name for name in changed if "__pycache__" not in name] == []


@pytest.fixture
def restored_signal_handlers() -> Iterator[None]:
    """Put the handlers of the stop signals back after a test that listens to them."""
    from parallel.stop_signals import STOP_SIGNALS

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
