"""Collectives: sums, broadcasts, and errors and stops that all ranks share."""

import pytest
import torch

from parallel import collectives, ranks
from parallel.shared_errors import SharedError
from tests.launching import together

TOGETHER = """
import sys, torch
from parallel.ranks import start, stop, user_errors
from parallel.collectives import (
    broadcast_object, on_main, raise_on_all_ranks, sum_over_ranks, together
)
from parallel.shared_errors import SharedError
with user_errors():
    me = start("cpu")
    total = sum_over_ranks(torch.tensor(float(me.rank + 1)))
    assert total.item() == 3.0, total
    assert broadcast_object(me.rank) == 0
    assert on_main(lambda: f"of rank {me.rank}") == "of rank 0"
    assert together(lambda: me.rank) == me.rank
    for share, bad in ((together, 1), (on_main, 0)):
        def fail():
            if me.rank == bad:
                raise OSError(f"disk {bad} is full")
        try:
            share(fail)
        except SharedError as error:
            assert str(error).endswith(f"disk {bad} is full"), error
        else:
            raise AssertionError(f"{share.__name__} did not raise on rank {me.rank}")
    raise_on_all_ranks(ValueError("disk 7 is missing") if me.rank == 1 else None)
"""


def test_with_one_rank_every_function_returns_its_input():
    me = ranks.start("cpu")
    assert (me.rank, me.world_size, me.is_main) == (0, 1, True)
    assert collectives.sum_over_ranks(torch.tensor(2.0)).item() == 2.0
    assert collectives.broadcast_object("x") == "x"
    collectives.raise_on_all_ranks(None)
    with pytest.raises(ValueError, match="^bad$"):
        collectives.raise_on_all_ranks(ValueError("bad"))


def test_two_ranks_sum_and_an_error_of_one_is_printed_once(tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    done = together(2, str(script))
    assert done.returncode == 2
    assert done.stderr.count("error: rank 1: disk 7 is missing") == 1


def test_with_one_rank_an_action_runs_here_and_its_error_is_shared():
    assert collectives.together(lambda: 7) == collectives.on_main(lambda: 7) == 7

    def fail():
        raise OSError("disk 7 is full")

    for share in (collectives.together, collectives.on_main):
        with pytest.raises(SharedError, match="^disk 7 is full$"):
            share(fail)


def test_an_error_of_another_kind_is_not_shared():
    with pytest.raises(ZeroDivisionError):
        collectives.together(lambda: 1 / 0)


def test_a_stop_request_ends_the_work_of_all_ranks():
    me = ranks.start("cpu")
    collectives.stop_on_all_ranks(me)
    with pytest.raises(collectives.StopAgreed):
        collectives.stop_on_all_ranks(ranks.Ranks(0, 1, 0, 1, me.device, poll_stop=lambda: True))
