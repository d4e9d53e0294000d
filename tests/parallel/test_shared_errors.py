"""User errors under torchrun: printed once, by rank 0 or by the rank that made them."""

import socket

import pytest

from parallel import ranks, shared_errors
from parallel.shared_errors import SharedError


def become_rank(monkeypatch, rank, local_rank):
    """Let this process be a rank of a job of three machines with four each."""
    job = {"WORLD_SIZE": 12, "LOCAL_WORLD_SIZE": 4, "MASTER_ADDR": "node0", "MASTER_PORT": 1}
    for name, value in (job | {"RANK": rank, "LOCAL_RANK": local_rank}).items():
        monkeypatch.setenv(name, str(value))


def printed(capsys, monkeypatch, rank, local_rank, error):
    """What a rank prints of its error, and the seconds that it waits before."""
    waited = []
    monkeypatch.setattr(shared_errors.time, "sleep", waited.append)
    become_rank(monkeypatch, rank, local_rank)
    with pytest.raises(SystemExit, match="2"), ranks.user_errors():
        raise error
    return capsys.readouterr().err, sum(waited)


@pytest.mark.parametrize(("local_rank", "seconds"), [(0, 0), (3, shared_errors.RANK_0_SECONDS)])
def test_an_error_of_one_other_rank_is_printed_with_rank_and_host(
    capsys, monkeypatch, local_rank, seconds
):
    sentence = f"[rank {8 + local_rank} on {socket.gethostname()}] error: no GPU\n"
    error = ValueError("no GPU")
    assert printed(capsys, monkeypatch, 8 + local_rank, local_rank, error) == (sentence, seconds)


def test_an_error_that_all_ranks_share_is_printed_by_rank_0(capsys, monkeypatch):
    shared = SharedError("rank 3: no GPU")
    assert printed(capsys, monkeypatch, 0, 0, shared) == ("error: rank 3: no GPU\n", 0)
    nothing = "", shared_errors.RANK_0_SECONDS
    assert printed(capsys, monkeypatch, 8, 0, shared) == nothing
    assert printed(capsys, monkeypatch, 3, 3, shared) == nothing


def test_a_rank_that_torchrun_stops_while_it_waits_only_leaves_the_group(
    monkeypatch,
):
    def stopped(_):
        raise SystemExit(75)

    done = []
    monkeypatch.setattr(shared_errors.time, "sleep", stopped)
    monkeypatch.setattr(ranks, "stop", lambda: done.append("stop"))
    monkeypatch.setattr(ranks, "prevent_restart", lambda: done.append("prevent_restart"))
    become_rank(monkeypatch, 1, 0)
    with pytest.raises(SystemExit, match="75"), ranks.user_errors():
        raise SharedError("rank 0: no data")
    assert done == ["stop"]
