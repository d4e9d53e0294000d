"""One process stands alone; several agree, also on errors."""

import pytest
import torch

from parallel import ranks
from tests.launching import torchrun

TOGETHER = """
import sys, torch
from parallel.ranks import start, stop, sum_over_ranks, from_main, raise_together, user_errors
with user_errors():
    me = start("cpu")
    total = sum_over_ranks(torch.tensor(float(me.rank + 1)))
    assert total.item() == 3.0, total
    assert from_main(me.rank) == 0
    raise_together(ValueError("disk 7 is missing") if me.rank == 1 else None)
"""


def test_alone_every_function_gives_back_its_input():
    me = ranks.start("cpu")
    assert (me.rank, me.world_size, me.is_main) == (0, 1, True)
    assert ranks.sum_over_ranks(torch.tensor(2.0)).item() == 2.0
    assert ranks.from_main("x") == "x"
    ranks.raise_together(None)
    with pytest.raises(ValueError, match="^bad$"):
        ranks.raise_together(ValueError("bad"))


@pytest.mark.parametrize(("device", "message"), [("tpu", "tpu is not known"), ("cuda", "no CUDA")])
def test_a_device_that_is_not_there_is_refused(device, message):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match=message):
        ranks.start(device)


def test_two_ranks_sum_and_an_error_on_one_is_said_once_for_all(tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    done = torchrun(2, str(script))
    assert done.returncode != 0
    assert done.stderr.count("error: rank 1: disk 7 is missing") == 1
    assert "exitcode  : 2" in done.stderr
