"""Calls of CUDA, recorded on a machine without a GPU."""

import os
from dataclasses import replace

import pytest
import torch

from bench.train_speed import reset_peak_memory
from model.estimates.memory import USABLE_SHARE
from model.precision import choose_dtype
from parallel import ranks
from storage.exit_codes import PEER_LOST_CODE
from tests.runs import built, nano_config
from train.checkpoints.host_copy import HostCopy
from train.loader import _reading_thread
from train.recovery import ending
from train.saving import LAST_SAVE_SECONDS, save_and_wait

CUDA = torch.device("cuda", 0)


@pytest.fixture
def calls(monkeypatch):
    """Pretend that there is a GPU; calls of torch.cuda are recorded in this list."""
    calls = []

    def record(name):
        monkeypatch.setattr(torch.cuda, name, lambda *words: calls.append((name, *words)))

    for name in ("set_device", "set_per_process_memory_fraction"):
        record(name)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        record(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setattr(os, "environ", {})
    return calls


def test_torch_leaves_memory_to_nccl_and_the_planned_memory_fits_into_its_share(calls):
    assert ranks.start("cuda").device == CUDA
    assert ("set_per_process_memory_fraction", ranks.TORCH_SHARE, CUDA) in calls
    assert USABLE_SHARE < ranks.TORCH_SHARE < 1


def test_the_reading_thread_works_on_the_ranks_own_gpu(calls):
    own = torch.device("cuda", 3)
    thread = _reading_thread(own)
    assert thread.submit(lambda: calls.count(("set_device", own))).result() == 1
    thread.shutdown()


def test_emulated_bfloat16_is_not_chosen(monkeypatch):
    def emulated(including_emulation=True):
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulated)
    assert choose_dtype("auto", CUDA) == torch.float32
    assert choose_dtype("bfloat16", CUDA) == torch.bfloat16


def test_a_benchmark_resets_the_peak_of_memory_after_freeing_it(calls):
    reset_peak_memory(CUDA)
    assert [name for name, *_ in calls] == ["empty_cache", "reset_peak_memory_stats"]


def test_memory_is_pinned_only_if_the_device_does_not_hang(monkeypatch):
    plain, pinned = torch.empty, []

    def empty(*size, pin_memory, **options):
        pinned.append(pin_memory)
        return plain(*size, **options)

    monkeypatch.setattr(torch, "empty", empty)
    for queued_first in (True, False):
        host = HostCopy(torch.device("cpu"))
        host.on_cuda = True
        host.take({"a": torch.ones(3)}, queued_first)
    assert pinned == [True, False]


@pytest.fixture
def one_of_two(tmp_path, monkeypatch):
    """A run that believes to be one of two ranks under NCCL, and the times of its watchdog."""
    run, seconds = built(nano_config(tmp_path)), []
    monkeypatch.setattr(
        "train.run.faulthandler.dump_traceback_later", lambda after, **_: seconds.append(after)
    )
    run.learner.ranks = replace(run.ranks, world_size=2, device=CUDA)
    run.saver.saved_step = run.step
    yield run, seconds
    run.close()


def test_the_last_save_gets_more_time_than_a_hanging_step(one_of_two):
    run, seconds = one_of_two
    run.heartbeat()
    save_and_wait(run)
    assert seconds == [2 * run.config.hang_seconds + 60, LAST_SAVE_SECONDS]


def test_an_emergency_save_gets_the_same_time(one_of_two, monkeypatch):
    run, seconds = one_of_two
    codes = []
    monkeypatch.setattr(ending.os, "_exit", codes.append)
    monkeypatch.setattr(ending.logging, "shutdown", lambda: None)
    ending._exit_after_failure(run, RuntimeError("NCCL error: unhandled system error"))
    assert (seconds, codes) == ([LAST_SAVE_SECONDS], [PEER_LOST_CODE])
