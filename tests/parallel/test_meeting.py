"""A rank that never arrives is named, in bounded time."""

import socket
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from parallel import ranks
from parallel import rendezvous as meeting
from parallel.rendezvous import RendezvousStore, dump_flight_record, rendezvous
from parallel.shared_errors import SharedError
from tests.launching import together

ABSENT = """
import os
from parallel import rendezvous as meeting
from parallel.ranks import start, user_errors
meeting.ARRIVAL_SECONDS = 1
if os.environ["RANK"] == "1":
    raise SystemExit(0)
with user_errors():
    start("cpu")
"""


def test_a_rank_that_does_not_come_to_the_start_is_named_by_rank_0(tmp_path):
    script = tmp_path / "absent.py"
    script.write_text(ABSENT)
    done = together(2, str(script))
    assert done.returncode == 2
    said = "error: not all 2 ranks came to the start within 1 s; missing: rank 1; look at"
    assert said in done.stderr, done.stderr


@pytest.fixture
def place(monkeypatch):
    """A launcher's store of this process, and no patience."""
    monkeypatch.setattr(meeting, "ARRIVAL_SECONDS", 0.1)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield RendezvousStore("127.0.0.1", store.port, "0", by_launcher=True)
    del store


def test_where_rank_0_is_missing_another_one_tells(place):
    with pytest.raises(ValueError, match=r"not all 3 ranks .*missing: rank 0, 2; ") as told:
        rendezvous(place, 1, 3)
    assert not isinstance(told.value, SharedError)


def test_no_rank_leaves_before_rank_0_has_given_up_and_can_tell(place, monkeypatch):
    store = dist.TCPStore(place.host, place.port, is_master=False)
    given_up = dist.PrefixStore("ratchet/arrival/0", store)
    given_up.set("rank 0", "here")  # but later than rank 1, and so is its deadline
    looks = iter(range(1000))

    def look(seconds):
        if next(looks) == 20:
            given_up.set("given up", "yes")
        time.sleep(seconds)

    monkeypatch.setattr(meeting, "time", SimpleNamespace(monotonic=time.monotonic, sleep=look))
    with pytest.raises(SharedError, match="missing: rank 2"):
        rendezvous(place, 1, 3)
    assert next(looks) > 20


def test_a_rank_that_came_to_an_earlier_attempt_is_not_there(place):
    with pytest.raises(ValueError, match="missing: rank 1"):
        rendezvous(place, 0, 2)
    again = RendezvousStore(place.host, place.port, "1", by_launcher=True)
    with pytest.raises(ValueError, match="missing: rank 0"):
        rendezvous(again, 1, 2)


def test_a_meeting_place_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(meeting, "ARRIVAL_SECONDS", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(ValueError, match=f"rank 0 does not answer at 127.0.0.1:{port}"):
            rendezvous(RendezvousStore("127.0.0.1", port, "0", by_launcher=False), 1, 2)


def test_one_rank_alone_has_no_flight_record(tmp_path):
    assert not dump_flight_record(tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


def test_restarts_are_told_apart_only_where_one_torchrun_counts_them_for_all(monkeypatch):
    environment = {"MASTER_ADDR": "node0", "MASTER_PORT": "1", "TORCHELASTIC_RESTART_COUNT": "2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks._meeting_place(one_machine=True).attempt == "2"
    assert ranks._meeting_place(one_machine=False).attempt == ""
