"""One process stands alone; several agree, also on errors."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from parallel import collectives, ranks
from parallel import shared_errors as mistakes
from parallel.rendezvous import LivenessCheck
from parallel.shared_errors import SharedError
from tests.launching import ENVIRONMENT, REPO, torchrun

TOGETHER = """
import sys, torch
from parallel.ranks import start, stop, user_errors
from parallel.collectives import sum_over_ranks, broadcast_object, raise_on_all_ranks
with user_errors():
    me = start("cpu")
    total = sum_over_ranks(torch.tensor(float(me.rank + 1)))
    assert total.item() == 3.0, total
    assert broadcast_object(me.rank) == 0
    raise_on_all_ranks(ValueError("disk 7 is missing") if me.rank == 1 else None)
"""


def test_alone_every_function_gives_back_its_input():
    me = ranks.start("cpu")
    assert (me.rank, me.world_size, me.is_main) == (0, 1, True)
    assert collectives.sum_over_ranks(torch.tensor(2.0)).item() == 2.0
    assert collectives.broadcast_object("x") == "x"
    collectives.raise_on_all_ranks(None)
    with pytest.raises(ValueError, match="^bad$"):
        collectives.raise_on_all_ranks(ValueError("bad"))


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


def told(capsys, monkeypatch, rank, local_rank, error):
    """What the rank of that number says of its mistake, and the seconds that it waited first."""
    waited = []
    monkeypatch.setattr(mistakes.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    with pytest.raises(SystemExit, match="2"), ranks.user_errors():
        raise error
    return capsys.readouterr().err, sum(waited)


@pytest.mark.parametrize(("local_rank", "seconds"), [(0, 0), (3, mistakes.LAST_WORD_SECONDS)])
def test_a_mistake_that_only_another_rank_made_is_told_with_rank_and_host(
    capsys, monkeypatch, local_rank, seconds
):
    said = f"[rank 11 on {socket.gethostname()}] error: no GPU\n"
    mistake = ValueError("no GPU")
    assert told(capsys, monkeypatch, 11, local_rank, mistake) == (said, seconds)


def test_a_mistake_that_every_rank_knows_of_is_rank_0s_to_tell(capsys, monkeypatch):
    shared = SharedError("rank 3: no GPU")
    assert told(capsys, monkeypatch, 0, 0, shared) == ("error: rank 3: no GPU\n", 0)
    silence = "", mistakes.LAST_WORD_SECONDS
    assert told(capsys, monkeypatch, 8, 0, shared) == silence
    assert told(capsys, monkeypatch, 3, 3, shared) == silence


def test_a_rank_that_torchrun_stops_while_it_waits_leaves_the_group_and_asks_for_nothing(
    monkeypatch,
):
    def stopped(_):
        raise SystemExit(75)

    done = []
    monkeypatch.setattr(mistakes.time, "sleep", stopped)
    monkeypatch.setattr(ranks, "stop", lambda: done.append("stop"))
    monkeypatch.setattr(ranks, "prevent_restart", lambda: done.append("dismiss"))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="75"), ranks.user_errors():
        raise SharedError("rank 0: no data")
    assert done == ["stop"]


@pytest.fixture
def two_gpus(monkeypatch):
    """Rank 1 of two on a machine that seems to have two GPUs; NCCL's variables are put back."""
    monkeypatch.setattr(ranks, "_wants_cuda", lambda *_: True)
    for name in ("set_device", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setattr(ranks, "rendezvous", lambda *_: None)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **__: None)
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in (environment | address).items():
        monkeypatch.setenv(name, value)
    for name in ranks.NCCL_WATCHES_NOTHING:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("watched", [True, False])
def test_only_where_we_watch_nccl_does_not_and_the_start_is_bounded(two_gpus, monkeypatch, watched):
    bounds = []
    monkeypatch.setattr(
        ranks.faulthandler, "dump_traceback_later", lambda seconds, **_: bounds.append(seconds)
    )
    ranks.start("cuda", timeout_seconds=10, watched=watched)
    set_now = {name: os.environ.get(name) for name in ranks.NCCL_WATCHES_NOTHING}
    assert set_now == {n: "0" if watched else None for n in ranks.NCCL_WATCHES_NOTHING}
    assert bounds == [20] * watched


def test_the_bound_on_the_start_can_be_set_while_a_rank_is_silenced(two_gpus):
    with pytest.raises(KeyError), ranks.user_errors():  # whatever but a mistake goes through
        ranks.start("cuda", watched=True)
        ranks.faulthandler.cancel_dump_traceback_later()
        raise KeyError


ORPHAN = """
import os, sys, time
from parallel.ranks import exit_with_launcher
exit_with_launcher()
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.fault("P3", injected="SIGKILL of torchrun: its worker is gone")
def test_a_worker_dies_with_its_torchrun_however_that_ends(tmp_path):
    (tmp_path / "orphan.py").write_text(ORPHAN)
    pid = tmp_path / "pid"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    command = [*launcher, str(tmp_path / "orphan.py"), str(pid)]
    with subprocess.Popen(command, cwd=REPO, env=ENVIRONMENT) as process:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(int(pid.read_text()))


@pytest.mark.parametrize(
    ("restarts", "done", "local_rank", "asked"),
    [("3", "0", "0", True), ("3", "3", "0", False), ("0", "0", "0", False), ("3", "0", "1", False)],
)
def test_only_a_launcher_that_would_start_again_is_dismissed(
    monkeypatch, restarts, done, local_rank, asked
):
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    for name, value in (("RUN_ID", "x"), ("MAX_RESTARTS", restarts), ("RESTART_COUNT", done)):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    ranks.prevent_restart()
    assert sent == ([(os.getppid(), signal.SIGTERM)] if asked else [])


def test_without_a_group_a_roll_call_blames_nobody():
    assert LivenessCheck().unresponsive_ranks() == []


def test_work_is_left_together_once_a_stop_is_wanted():
    me = ranks.start("cpu")
    collectives.stop_on_all_ranks(me)
    with pytest.raises(collectives.StopAgreed):
        collectives.stop_on_all_ranks(ranks.Ranks(0, 1, 0, 1, me.device, poll_stop=lambda: True))
