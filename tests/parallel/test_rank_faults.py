"""Faults of a job's processes: how many steps they cost, and that the numbers are equal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.dataset.shards import check_data_set, open_data_set
from storage.retention import SaveConfig
from tests.data_prep.stories import story, write_lines
from tests.forked_ranks import forked_ranks
from tests.launching import ENVIRONMENT, REPO
from tests.runs import flags, nano_config
from train.recovery.resume_proof import kills
from train.recovery.resume_proof.comparison import compare_exactly
from train.recovery.resume_proof.kills import POLL_SECONDS, Job

STEPS, SAVE_EVERY = 60, 5
IN_FLIGHT = 2  # updates that are done but have no metric line yet

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def _ranks_are_forks():
    with forked_ranks():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


def job(folder, name, restarts=0):
    """A run of two ranks with slow steps."""
    config = nano_config(folder, steps=STEPS, save=SaveConfig(SAVE_EVERY, 0))
    words = flags(config, "--no-rehearsal")[1:]
    words[words.index("--out") + 1] = str(folder / name)
    made = Job(words, folder / name, processes=2, restarts=restarts)
    made.command = [
        REPO / "tests/programs/leaver.py" if "main.py" in w else w for w in made.command
    ]
    made.command = list(map(str, made.command))
    return made


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """The undisturbed run."""
    made = job(folder, "uninterrupted")
    made.run_to_end()
    return folder / "uninterrupted"


def reaches(made, process, step):
    """Wait until `step` updates have a metric line."""
    while process.poll() is None and made.steps_done() < step:
        time.sleep(POLL_SECONDS)
    assert process.poll() is None, made.log.read_text()[-3000:]


def children_of(process):
    """Process ids of the children of a process."""
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def assert_identical(uninterrupted, made):
    made.check(0)
    assert [f.what for f in compare_exactly(uninterrupted, made.folder.path) if not f.holds] == []


@pytest.mark.fault("P2", injected="SIGKILL of both ranks and torchrun", lost="≤ 5", identical=True)
@pytest.mark.fault(
    "S8", injected="steps done again after a kill of all", lost="≤ 5", identical=True
)
def test_a_kill_of_all_processes_costs_the_steps_since_the_last_save(folder, uninterrupted):
    made = job(folder, "all")
    process = made.start()
    reaches(made, process, 23)
    for pid in (process.pid, *kills.workers_of(process.pid).values()):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    done = made.steps_done()
    made.run_to_end()
    assert 0 < done - made.starts()[-1] <= SAVE_EVERY
    assert_identical(uninterrupted, made)


@pytest.mark.fault("P3", injected="SIGKILL of torchrun alone", lost="≤ 7", identical=True)
@pytest.mark.fault("P13", injected="a second start right behind it", lost="≤ 7", identical=True)
def test_a_killed_torchrun_leaves_no_second_writer(folder, uninterrupted):
    made = job(folder, "launcher")
    process = made.start()
    reaches(made, process, 23)
    process.kill()
    process.wait()
    made.run_to_end()
    done = len(made.folder.metrics.read_text().splitlines())
    again = made.folder.discarded_metrics.read_text().count('"train/loss"')
    assert done == STEPS + 1
    assert again <= SAVE_EVERY + IN_FLIGHT
    assert_identical(uninterrupted, made)


@pytest.mark.fault("P4", injected="SIGTERM to one rank of two", lost="0", identical=True)
def test_a_stop_request_to_one_rank_stops_all_and_loses_no_step(folder, uninterrupted):
    made = job(folder, "term", restarts=3)
    process = made.start()
    reaches(made, process, 20)
    os.kill(kills.workers_of(process.pid)[1], signal.SIGTERM)
    assert process.wait() != 0
    status = made.folder.read_status()
    assert (status["state"], len(made.starts())) == ("preempted", 1)
    made.run_to_end()
    assert made.starts()[-1] == status["step"] >= 20
    assert not made.folder.discarded_metrics.exists()
    assert_identical(uninterrupted, made)


@pytest.mark.fault("P9", injected="rank 1 leaves with code 0, or raises", lost="0", identical=True)
@pytest.mark.parametrize(
    ("how", "message"), [("exit", "no answer from rank 1"), ("raise", "an error of rank 1")]
)
def test_a_rank_that_exits_is_named_and_costs_no_step(
    folder, uninterrupted, monkeypatch, how, message
):
    monkeypatch.setenv("LEAVE", how)
    made = job(folder, how, restarts=1)
    made.run_to_end()
    assert message in made.log.read_text()
    assert made.starts()[0] == 0
    assert made.starts()[1] >= 19  # rank 0 saved the 20th update, or it was repeated
    assert not made.folder.discarded_metrics.exists()
    assert_identical(uninterrupted, made)


@pytest.mark.fault("P1", injected="SIGKILL of rank 1, then 0, of two", lost="0", identical=True)
@pytest.mark.fault("P11", injected="2 restarts inside one torchrun", lost="0", identical=True)
def test_every_restart_inside_torchrun_succeeds_at_the_first_try(folder, uninterrupted):
    made = job(folder, "restarts", restarts=2)
    process = made.start()
    for number, rank in enumerate((1, 0)):
        reaches(made, process, 15 + 20 * number)
        done = made.steps_done()
        os.kill(kills.workers_of(process.pid)[rank], signal.SIGKILL)
        while process.poll() is None and len(made.starts()) < number + 2:
            time.sleep(POLL_SECONDS)
        assert made.starts()[-1] >= done
    assert process.wait() == 0
    assert len(made.starts()) == 3  # no restart failed
    assert_identical(uninterrupted, made)


@pytest.mark.fault("P12", injected="SIGKILL of a worker, as the kernel does without memory")
def test_a_preparation_whose_worker_is_killed_reports_it_and_can_be_resumed(tmp_path):
    write_lines(tmp_path / "a.jsonl", [story(number, 400) for number in range(3000)])
    words = ("--out", "out", "--shard-tokens", "60000", "--workers", "2")
    command = [sys.executable, str(REPO / "data_prep/text.py"), "a.jsonl", *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("out.partial/units/*/unit.json")):
        assert process.poll() is None
        time.sleep(POLL_SECONDS)
    os.kill(int(children_of(process.pid)[-1]), signal.SIGKILL)
    _, output = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "died, perhaps for lack of memory" in output.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    check_data_set(open_data_set(tmp_path / "out"), "full")
