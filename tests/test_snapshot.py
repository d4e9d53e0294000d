"""The state on the host: a copy that later updates do not touch, taken past a hanging step too."""

from types import SimpleNamespace

import pytest
import torch

from train.config import BatchPlan
from train.preemption import SilentRank, StopSignal
from train.progress import Progress
from train.snapshot import HostCopy
from train.values import VALUES

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
    host.take({"a": weights})  # has its memory before the device is busy
    host.wait()
    torch.cuda._sleep(10_000_000_000)  # some seconds, like a reduction that waits for a dead rank
    host.before_update(7)
    weights += 1
    copy = host.take({"a": weights}, queued_first=False)["a"]
    host.wait()
    assert not host.update_has_begun(7)
    assert (copy.min(), copy.max()) == (1, 1)
    torch.cuda.synchronize()
    assert host.update_has_begun(7)


def test_a_step_that_cuda_never_ends_is_a_silent_rank_and_stays_known():
    stop = StopSignal()
    progress = Progress(BatchPlan(16, 8, 2, 2), 9, 1.0, None, hang_seconds=0.01, stop=stop)
    progress.launched(3, 0.1, 24, torch.zeros(VALUES), {})
    stop.nothing_done = False
    pending = progress._pending
    progress._pending = SimpleNamespace(
        step=3, first_window=24, ready=SimpleNamespace(query=lambda: False), launched_at=0.0
    )
    with pytest.raises(SilentRank, match="step 3 has not ended for 0 s; .*larger --hang-seconds"):
        progress.read()
    assert (progress.stuck.step, progress.stuck.first_window) == (pending.step, 24)
