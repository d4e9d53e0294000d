"""Processes are killed with SIGKILL, and the run ends as if nothing had happened."""

import os
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from storage import run_folder
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.forked_ranks import forked_ranks
from tests.launching import real_torchrun
from tests.runs import RECIPES, built, flags, losses, nano_config, set_step, stopped_at
from train.progress import UnresponsiveRank
from train.prove_resume import ProofOptions, prove
from train.recovery.ending import (
    emergency_checkpoint,
    is_disconnect,
    is_peer_failure,
    last_consistent_state,
)
from train.recovery.resume_proof.comparison import compare_exactly
from train.recovery.resume_proof.kills import POLL_SECONDS, Job, workers_of

STEPS = 40


def words(folder, *more, steps=STEPS, recipe="gpt2"):
    """The command line of a nano run without its --out, which follows it."""
    config = nano_config(folder, steps=steps, save=SaveConfig(5, 0))
    config = replace(config, **RECIPES[recipe])
    found = flags(config, *more)[1:]
    at = found.index("--out")
    return found[:at] + found[at + 2 :]


@pytest.fixture(scope="module")
def proof(tmp_path_factory):
    """A straight run, and one with a kill of one rank, of all, and inside a save."""
    folder = tmp_path_factory.mktemp("proof")
    options = ProofOptions(nproc=4, kills=3, proof_out=folder / "out")
    with forked_ranks():
        text, holds = prove(options, words(folder), STEPS)
    return SimpleNamespace(text=text, holds=holds, folder=folder)


@pytest.mark.fault("P1", injected="SIGKILL of a random rank of four", lost="0", identical=True)
@pytest.mark.fault("S1", injected="SIGKILL of all inside a save, four ranks", identical=True)
@pytest.mark.long
def test_three_kills_leave_a_run_of_four_ranks_as_if_nothing_had_happened(proof):
    assert proof.holds, proof.text
    assert "3 kills: PASSED" in proof.text
    assert "| a dead rank costs no step | yes | 0 lost in 1 kills |" in proof.text


@pytest.mark.fault("P1", injected="SIGKILL of rank 0 of four", lost="0", identical=True)
@pytest.mark.long
def test_rank_0_dies_and_no_step_or_metric_line_is_lost(proof):
    out = proof.folder / "out" / "without_rank_0"
    job = Job([*words(proof.folder), "--out", str(out)], out, processes=4, restarts=3)
    process = job.start()
    while process.poll() is None and job.steps_done() < STEPS // 2:
        time.sleep(POLL_SECONDS)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    done = job.steps_done()
    assert process.wait() == 0
    assert done <= job.starts()[-1] <= done + 2
    assert all(finding.holds for finding in compare_exactly(out.with_name("straight"), out))
    assert not (out / "metrics.discarded.jsonl").exists()
    assert "nothing is lost" in job.log.read_text()


@pytest.mark.fault(
    "P14",
    injected="25 SIGKILLs: a rank, all, in a save, torchrun",
    lost="0 for a rank",
    identical=True,
)
@pytest.mark.fault("R2", injected="four ranks stopped, continued on two", lost="0")
@pytest.mark.long
def test_twenty_five_kills_and_another_number_of_ranks(tmp_path):
    options = ProofOptions(nproc=4, kills=25, resume_nproc=(2,), proof_out=tmp_path / "out")
    with forked_ranks():
        text, holds = prove(options, words(tmp_path, steps=150), 150)
    assert holds, text


@pytest.mark.fault(
    "P14",
    injected="4 SIGKILLs of a run with Muon, one of each kind",
    lost="0 for a rank",
    identical=True,
)
@pytest.mark.fault(
    "R2",
    injected="four ranks with Muon and --reduction tree stopped, continued on two",
    lost="0",
    identical=True,
)
@pytest.mark.long
def test_kills_of_a_modern_run_and_another_number_of_ranks(tmp_path):
    options = ProofOptions(nproc=4, kills=4, resume_nproc=(2,), proof_out=tmp_path / "out")
    run = words(tmp_path, "--reduction", "tree", recipe="modern")
    with forked_ranks():
        text, holds = prove(options, run, STEPS, same_bits=True)
    assert holds, text


@pytest.mark.fault("P7", injected="SIGSTOP of one rank of two", lost="0")
@pytest.mark.long
def test_a_rank_that_is_stopped_is_named_and_costs_no_step(tmp_path):
    arguments = [*words(tmp_path, "--hang-seconds", "5"), "--out", str(tmp_path / "out")]
    job = Job(arguments, tmp_path / "out", processes=2, restarts=1)
    process = job.start()
    while process.poll() is None and job.steps_done() < STEPS // 2:
        time.sleep(POLL_SECONDS)
    os.kill(workers_of(process.pid)[1], signal.SIGSTOP)
    done = job.steps_done()
    assert process.wait() == 0  # torchrun gave the stopped one thirty seconds, then killed it
    assert job.starts()[-1] >= done
    log = job.log.read_text()
    assert "no answer from rank 1" in log
    assert "rank 1 was killed by SIGKILL; all ranks are started again" in log


@pytest.mark.long
def test_under_torchrun_a_mistake_is_one_sentence_and_not_tried_again(tmp_path):
    config = nano_config(tmp_path)
    done = real_torchrun(2, "--max-restarts=3", *flags(config), "--batch-tokens", "100")
    assert done.returncode != 0
    assert done.stderr.count("batch_tokens=100 is not a multiple") == 1
    assert not config.out.exists()


def test_of_two_survivors_the_one_that_is_further_has_the_last_word(tmp_path):
    ahead = stopped_at(tmp_path, 5)
    ahead.saver.wait()
    set_step(ahead, 6)
    ahead.saver.saved_step = -1
    assert emergency_checkpoint(ahead, "a peer died") == 6
    set_step(ahead, 5)
    assert emergency_checkpoint(ahead, "a peer died") is None
    assert ahead.folder.recover_newest_checkpoint() == ahead.folder.checkpoint(6)
    status = RunFolder(ahead.folder.path).read_status()
    assert (status["state"], status["step"]) == ("failed", 6)
    ahead.close()


def test_what_another_survivor_has_written_is_not_even_copied(tmp_path):
    run = stopped_at(tmp_path, 5)
    run.progress.watch.stuck = SimpleNamespace(step=4, first_window=32)
    run.saver.host_copy.take = None
    assert emergency_checkpoint(run, "a peer is silent") is None
    run.close()


def test_survivors_of_a_hanging_step_copy_the_state_one_at_a_time(tmp_path):
    run = stopped_at(tmp_path, 5)
    run.progress.watch.stuck = SimpleNamespace(step=6, first_window=48)
    inside, held, take = run.folder.emergency_save_lock, [], run.saver.host_copy.take

    @contextmanager
    def survivor():
        with inside():
            held.append("in")
            yield
        held.append("out")

    run.folder.emergency_save_lock = survivor
    run.saver.host_copy.take = lambda *words, **more: (held.append("copy"), take(*words, **more))[1]
    assert emergency_checkpoint(run, "a peer is silent") == 6
    assert held == ["in", "copy", "out"]
    run.close()


def test_a_survivor_digests_no_older_checkpoint_for_torchrun_gives_it_30_seconds(
    tmp_path, monkeypatch
):
    run = stopped_at(tmp_path, 5)
    digested = []
    monkeypatch.setattr(run_folder, "verify_checkpoint", lambda path, also: digested.append(path))
    set_step(run, 6)
    assert emergency_checkpoint(run, "a peer died") == 6
    assert digested == []
    assert emergency_checkpoint(run, "a peer died") is None
    assert digested == [run.folder.checkpoint(6)]
    run.close()


def test_a_state_inside_an_update_is_never_written(tmp_path):
    run = stopped_at(tmp_path, 5)
    run.learner.consistent = False
    assert last_consistent_state(run) is None
    run.close()


def test_while_a_step_hangs_the_state_before_it_is_the_one_that_counts(tmp_path):
    run = stopped_at(tmp_path, 5)
    run.progress.watch.stuck = SimpleNamespace(step=4, first_window=32)
    contents = last_consistent_state(run)
    assert (contents.position.step, contents.position.next_window) == (4, 32)
    assert [line["step"] for line in contents.position.lines] == [2, 3]
    run.saver.host_copy.update_has_begun = lambda step: step == 4  # it went on during the copy
    assert last_consistent_state(run) is None
    run.close()


def test_lines_that_a_dead_rank_0_never_wrote_come_back_with_the_checkpoint(tmp_path):
    run = stopped_at(tmp_path, 5)
    config, found = run.config, losses(run.folder.path)
    run.close()
    file = run.folder.metrics
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    built(replace(config)).close()
    assert losses(run.folder.path) == found


def test_an_error_of_a_collective_is_told_from_ones_own():
    assert is_peer_failure(RuntimeError("[../gloo/pair.cc] Connection closed by peer [127.0.0.1]"))
    assert is_peer_failure(UnresponsiveRank("step 4 has not ended for 300 s"))
    assert not is_peer_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_peer_failure(OSError("No space left on device"))


def test_a_peer_that_is_gone_is_told_from_one_that_is_silent():
    assert is_disconnect(RuntimeError("[../gloo/pair.cc] Connection closed by peer [127.0.0.1]"))
    assert is_disconnect(RuntimeError("readv [127.0.0.1]:9: Connection reset by peer"))
    assert not is_disconnect(
        RuntimeError("Timed out waiting 5000ms for recv operation to complete")
    )
    assert not is_disconnect(UnresponsiveRank("step 4 has not ended for 300 s"))
