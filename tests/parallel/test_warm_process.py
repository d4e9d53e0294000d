"""Jobs that share a machine: their GPUs, and what is left when nobody waits for them."""

import os
import subprocess
import sys
import time

import pytest

from parallel.warm_process import (
    WarmProcess,
    gpus_of_slot,
    rank_environments,
    shared_environment,
)
from tests.launching import REPO


@pytest.mark.parametrize(
    ("processes", "gpus", "expected"),
    [
        (1, 4, ["0", "1", "2", "3", "0"]),
        (2, 4, ["0,1", "2,3", "0,1"]),
        (3, 4, ["0,1,2", "3,0,1"]),
    ],
)
def test_jobs_take_gpus_in_turn(monkeypatch, processes, gpus, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [gpus_of_slot(slot, processes, gpus) for slot in range(len(expected))]
    assert found == [{"CUDA_VISIBLE_DEVICES": names} for names in expected]


def test_only_gpus_that_this_process_may_use_are_given_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert gpus_of_slot(1, 1, 2) == {"CUDA_VISIBLE_DEVICES": "7"}


@pytest.mark.parametrize(("processes", "gpus"), [(1, 0), (1, 1), (8, 8)])
def test_nothing_is_said_where_there_is_nothing_to_share(processes, gpus):
    assert gpus_of_slot(0, processes, gpus) == {}


def test_threads_are_shared_out_unless_somebody_chose_them(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert shared_environment(10_000)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert shared_environment(10_000)["OMP_NUM_THREADS"] == "3"


def test_ranks_have_one_address_and_their_numbers():
    first, second = rank_environments({"A": "b"}, 2)
    assert (first["RANK"], second["RANK"], second["WORLD_SIZE"]) == ("0", "1", "2")
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    assert rank_environments({"A": "b"}, 1) == [{"A": "b"}]


@pytest.mark.parametrize(("safe", "first"), [("", "folder"), ("1", "repository")])
def test_a_script_searches_its_own_folder_first_unless_python_is_told_not_to(tmp_path, safe, first):
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.path[0])")
    environment = {**os.environ, "PYTHONSAFEPATH": safe}
    warm = WarmProcess([], REPO, environment)
    with (tmp_path / "out").open("w") as out, open(os.devnull) as nothing:
        warm.start([str(script)], [nothing, out, out], tmp_path, [environment])
        assert warm.wait() == [0]
    warm.close()
    found = (tmp_path / "out").read_text().strip()
    assert found == str({"folder": tmp_path, "repository": REPO}[first])


def test_libraries_may_be_told_to_use_several_threads(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    warm = WarmProcess(["numpy", "torch"], REPO, environment)
    code = "import torch; print(torch.get_num_threads())"
    with (tmp_path / "out").open("w") as out, open(os.devnull) as nothing:
        warm.start(["-c", code], [nothing, out, out], tmp_path, [environment])
        assert warm.wait() == [0]
    warm.close()
    assert (tmp_path / "out").read_text() == "2\n"


ABANDONED = """
import os, sys
from pathlib import Path
from parallel.warm_process import WarmProcess
warm = WarmProcess([], Path.cwd(), dict(os.environ))
streams = [open(os.devnull), sys.stdout, sys.stderr]
code = "import signal, time; time.sleep(60)"
print(warm.start(["-c", code], streams, Path.cwd(), [dict(os.environ)])[0], flush=True)
os._exit(9)
"""


def test_jobs_end_when_who_started_them_was_killed():
    command = [sys.executable, "-c", ABANDONED]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    # Their output is closed only once the job and the process of the imports have ended.
    done = subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 9
    pid = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the job still runs")


UNANSWERED = ABANDONED.replace(
    "print(warm.start", "warm._receive = lambda: os._exit(9)\nprint(warm.start"
)


def test_jobs_end_when_who_started_them_did_not_wait_for_the_answer():
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", UNANSWERED]
    done = subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (9, "", "")
