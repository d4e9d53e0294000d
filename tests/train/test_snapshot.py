"""The state on the host: a copy that later updates do not touch, taken past a hanging step too."""

import itertools
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from parallel.stop_signals import StopRequest
from train.batch_plan import BatchPlan
from train.checkpoints.host_copy import HostCopy
from train.progress import Progress, UnresponsiveRank
from train.step import VALUES

MANY = 64_000_000


def test_a_copy_is_a_copy_and_its_memory_is_used_again():
    host = HostCopy(torch.device("cpu"))
    weights = torch.ones(3)
    first = host.take({"a": weights})["a"]
    weights += 1
    assert first.tolist() == [1, 1, 1]
    assert host.take({"a": weights})["a"].data_ptr() == first.data_ptr()


@pytest.mark.gpu
def test_a_copy_beside_the_next_step_is_the_state_before_its_update():
    host = HostCopy(torch.device("cuda"))
    weights = torch.ones(MANY, device="cuda")
    copy = host.take({"a": weights})["a"]
    host.before_update(0)
    weights += 1
    host.wait()
    assert (copy.min(), copy.max()) == (1, 1)


@pytest.mark.gpu
def test_the_state_before_a_hanging_step_can_be_copied_and_one_that_went_on_is_known():
    host = HostCopy(torch.device("cuda"))
    weights = torch.ones(MANY, device="cuda")
    torch.cuda._sleep(10_000_000_000)  # some seconds, like a reduction that waits for a dead rank
    host.before_update(7)
    weights += 1
    copy = host.take({"a": weights}, queued_first=False)["a"]
    host.wait()
    assert not host.update_has_begun(7)
    assert (copy.min(), copy.max()) == (1, 1)
    torch.cuda.synchronize()
    assert host.update_has_begun(7)


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
