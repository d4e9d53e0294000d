"""On the CPU, freed memory stays with the process, unless the user has decided otherwise."""

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
faults()  # the pages that will be kept are cleared once, and again where small blocks lie between
print(before, faults())
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")


def page_faults(**environment: str) -> tuple[int, int]:
    """Minor faults of twenty 64 MiB tensors one after another, before and after `start`."""
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
def test_after_the_start_large_tensors_reuse_their_pages_though_torch_was_there_before():
    before, after = page_faults()
    assert before >= 20 * 32  # pages of 2 MiB; of small ones a tensor has 16,384
    assert after < before / 4


@glibc
def test_variables_of_the_users_own_are_left_in_force():
    before, after = page_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert after > before / 2


def test_without_glibc_nothing_is_touched(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("there is no mallopt"))
    assert not allocator.keep_large_blocks()
