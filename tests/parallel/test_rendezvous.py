"""The start of a job: a rank that does not arrive is named, in bounded time."""

import socket
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from parallel import ranks
from parallel import rendezvous as rendezvous_file
from parallel.rendezvous import LivenessCheck, RendezvousStore, dump_flight_record, rendezvous
from parallel.shared_errors import SharedError
from tests.launching import together

ABSENT = """
import os
from parallel import rendezvous
from parallel.ranks import start, user_errors
rendezvous.ARRIVAL_SECONDS = 1
if os.environ["RANK"] == "1":
    raise SystemExit(0)
with user_errors():
    start("cpu")
"""


def test_rank_0_names_a_rank_that_does_not_arrive(tmp_path):
    script = tmp_path / "absent.py"
    script.write_text(ABSENT)
    done = together(2, str(script))
    assert done.returncode == 2
    sentence = "error: not all 2 ranks started within 1 s; missing: rank 1; look at"
    assert sentence in done.stderr, done.stderr


@pytest.fixture
def place(monkeypatch):
    """A store that this process serves in place of torchrun, and a short time to arrive."""
    monkeypatch.setattr(rendezvous_file, "ARRIVAL_SECONDS", 0.1)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield RendezvousStore("127.0.0.1", store.port, "0", by_torchrun=True)
    del store


def test_another_rank_prints_the_error_if_rank_0_is_missing(place):
    with pytest.raises(ValueError, match=r"not all 3 ranks .*missing: rank 0, 2; ") as raised:
        rendezvous(place, 1, 3)
    assert not isinstance(raised.value, SharedError)


def test_no_rank_exits_before_rank_0_has_given_up_and_can_print(place, monkeypatch):
    store = dist.TCPStore(place.host, place.port, is_master=False)
    given_up = dist.PrefixStore("ratchet/arrival/0", store)
    given_up.set("rank 0", "here")  # it arrived after rank 1, so its deadline is later
    polls = iter(range(1000))

    def sleep(seconds):
        if next(polls) == 20:
            given_up.set("given up", "yes")
        time.sleep(seconds)

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
    monkeypatch.setattr(rendezvous_file, "time", clock)
    with pytest.raises(SharedError, match="missing: rank 2"):
        rendezvous(place, 1, 3)
    assert next(polls) > 20


def test_a_rank_that_arrived_in_an_earlier_attempt_does_not_count(place):
    with pytest.raises(ValueError, match="missing: rank 1"):
        rendezvous(place, 0, 2)
    again = RendezvousStore(place.host, place.port, "1", by_torchrun=True)
    with pytest.raises(ValueError, match="missing: rank 0"):
        rendezvous(again, 1, 2)


def test_a_store_that_does_not_answer_is_named_by_its_address(monkeypatch):
    monkeypatch.setattr(rendezvous_file, "ARRIVAL_SECONDS", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(ValueError, match=f"rank 0 does not answer at 127.0.0.1:{port}"):
            rendezvous(RendezvousStore("127.0.0.1", port, "0", by_torchrun=False), 1, 2)


def test_one_rank_alone_has_no_flight_record(tmp_path):
    assert not dump_flight_record(tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize(("local_world_size", "attempt"), [("2", "2"), ("1", "")])
def test_a_restart_uses_a_new_key_only_if_one_torchrun_counts_for_all(
    monkeypatch, local_world_size, attempt
):
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1" if local_world_size == "2" else "0",
        "LOCAL_WORLD_SIZE": local_world_size,
        "TORCHELASTIC_RESTART_COUNT": "2",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    places = []
    monkeypatch.setattr(ranks, "rendezvous", lambda place, *_: places.append(place))
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **__: None)
    ranks.start("cpu")
    assert [place.attempt for place in places] == [attempt]


def test_without_a_process_group_no_rank_is_reported_as_unresponsive():
    assert LivenessCheck().unresponsive_ranks() == []
