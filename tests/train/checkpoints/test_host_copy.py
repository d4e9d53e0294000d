"""A host copy is not touched by later updates, and can be taken beside a step that hangs."""

import pytest
import torch

from train.checkpoints.host_copy import HostCopy

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
