"""The step in flight: how long it is waited for, how it is timed, and when a rank hangs."""

import itertools
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from parallel.stop_signals import StopRequest
from train.batch_plan import BatchPlan
from train.progress import Progress, UnresponsiveRank
from train.step import VALUES

MANY = 64_000_000


def on_device(progress, done):
    """Make the step in flight one of a device that says whether it has done it."""
    progress.clock.timed_steps = max(progress.clock.timed_steps, 1)
    progress._pending = replace(progress._pending, ready=SimpleNamespace(query=done))


@pytest.fixture
def progress():
    """Of two ranks, with step 3 in flight."""
    plan = BatchPlan(16, 8, 2, 2)
    progress = Progress(plan, 9, 1.0, None, hang_seconds=0.01, stop=StopRequest())
    progress.launched(3, 0.1, 24, 512, torch.zeros(VALUES), {})
    return progress


@pytest.mark.parametrize("part", ["wait", "read"])
def test_a_step_that_cuda_never_ends_is_a_silent_rank_and_stays_known(progress, part):
    on_device(progress, lambda: False)
    with pytest.raises(
        UnresponsiveRank, match="step 3 has not ended for 0 s; .*larger --hang-seconds"
    ):
        getattr(progress, part)()
    assert (progress.watch.stuck.step, progress.watch.stuck.first_window) == (3, 24)
    assert progress.read() is None  # its line is never waited for again


def test_a_step_that_was_waited_for_is_read_later_and_timed_to_its_own_end(progress):
    on_device(progress, lambda: True)
    progress.wait()
    time.sleep(1.0)
    step, metrics = progress.read()
    assert step == 3
    assert metrics["speed/step_milliseconds"] < 900


def test_after_a_signal_a_hanging_step_leaves_most_of_30_seconds_to_save(progress, monkeypatch):
    on_device(progress, lambda: False)
    progress.clock.first_seconds = 60.0  # it compiled
    progress.clock.seconds, progress.clock.timed_steps = 10.0, 11
    progress.watch.stop.wanted = True
    seconds = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _: None)
    monkeypatch.setattr("train.progress.time", clock)
    with pytest.raises(UnresponsiveRank, match="step 3 has not ended for 9 s"):
        progress.wait()


def test_what_was_waited_before_a_signal_does_not_count_as_silence_after_it(progress, monkeypatch):
    progress.watch.hang_seconds = 100
    progress.clock.seconds, progress.clock.timed_steps = 10.0, 11
    seconds, moments = itertools.count(), itertools.count()

    def query():
        progress.watch.stop.wanted = next(moments) > 5  # later than what it may take after a signal
        return next(moments) > 18

    on_device(progress, query)
    clock = SimpleNamespace(
        monotonic=lambda: next(seconds), sleep=lambda _: None, perf_counter=time.perf_counter
    )
    monkeypatch.setattr("train.progress.time", clock)
    progress.wait()
    assert progress.watch.stuck is None
