"""One process as a rank of a job: device, watchdogs, and the end together with torchrun."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from parallel import ranks
from tests.launching import ENVIRONMENT, REPO


@pytest.mark.parametrize(("device", "message"), [("tpu", "tpu is not known"), ("cuda", "no CUDA")])
def test_a_missing_device_is_refused(device, message):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match=message):
        ranks.start(device)


@pytest.fixture
def two_gpus(monkeypatch):
    """Rank 1 of two on a machine that seems to have two GPUs. NCCL's variables are restored."""
    monkeypatch.setattr(ranks, "wants_cuda", lambda *_: True)
    for name in ("set_device", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setattr(ranks, "rendezvous", lambda *_: None)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **__: None)
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in (environment | address).items():
        monkeypatch.setenv(name, value)
    for name in ranks.NCCL_WITHOUT_WATCHDOGS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("watched", [True, False])
def test_nccl_watchdogs_are_off_and_the_start_is_bounded_only_if_the_caller_watches(
    two_gpus, monkeypatch, watched
):
    bounds = []
    monkeypatch.setattr(
        ranks.faulthandler, "dump_traceback_later", lambda seconds, **_: bounds.append(seconds)
    )
    ranks.start("cuda", timeout_seconds=10, watched=watched)
    set_now = {name: os.environ.get(name) for name in ranks.NCCL_WITHOUT_WATCHDOGS}
    assert set_now == {n: "0" if watched else None for n in ranks.NCCL_WITHOUT_WATCHDOGS}
    assert bounds == [20] * watched


def test_the_bound_on_the_start_works_while_standard_error_is_captured(two_gpus):
    with pytest.raises(KeyError), ranks.user_errors():  # only user errors are caught
        ranks.start("cuda", watched=True)
        ranks.faulthandler.cancel_dump_traceback_later()
        raise KeyError


ORPHAN = """
import os, sys, time
from parallel.ranks import exit_with_torchrun
exit_with_torchrun()
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
def test_a_worker_ends_when_its_torchrun_is_killed(tmp_path):
    (tmp_path / "orphan.py").write_text(ORPHAN)
    pid = tmp_path / "pid"
    torchrun_command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=1",
    ]
    command = [*torchrun_command, str(tmp_path / "orphan.py"), str(pid)]
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
def test_torchrun_is_asked_to_exit_only_if_it_would_restart(
    monkeypatch, restarts, done, local_rank, asked
):
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    for name, value in (("RUN_ID", "x"), ("MAX_RESTARTS", restarts), ("RESTART_COUNT", done)):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    ranks.prevent_restart()
    assert sent == ([(os.getppid(), signal.SIGTERM)] if asked else [])
