"""The allocator on the CPU keeps freed memory, unless the user has set glibc's variables."""

import ctypes
import platform
import subprocess
import sys

import pytest

from parallel import allocator
from tests.launching import ENVIRONMENT, REPO

FAULTS = """
import resource, sys, torch
from parallel.ranks import start

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
start("cpu")
faults()  # pages that will be kept are cleared once more, some of them twice
print(before, faults())
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")


def page_faults(**environment: str) -> tuple[int, int]:
    """Minor page faults of twenty 64 MiB tensors in sequence, before and after `start`."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=ENVIRONMENT | environment,
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = done.stdout.split()
    return int(before), int(after)


@glibc
@pytest.mark.long
def test_after_the_start_large_tensors_reuse_their_pages():
    before, after = page_faults()
    assert before >= 20 * 32  # pages of 2 MiB; of small ones a tensor has 16,384
    assert after < before / 4


@glibc
@pytest.mark.long
def test_the_users_own_variables_stay_in_effect():
    before, after = page_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert after > before / 2


def test_without_glibc_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("there is no mallopt"))
    assert not allocator.keep_large_blocks()
