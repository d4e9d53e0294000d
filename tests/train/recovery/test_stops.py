"""A stop during a run: agreed by all ranks, saved, and recorded in status.json."""

import os
import signal
import sys
import time
from dataclasses import replace

import pytest

import train.evaluation as duties
import train.main as script
from eval.training_config import EvalConfig
from parallel.stop_signals import (
    STOP_SIGNALS,
    StopRequest,
)
from storage.exit_codes import INTERRUPTED_CODE, PREEMPTED_CODE
from storage.metrics import MetricLog, MetricWriter
from storage.ownership import folder_lock
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.launching import running
from tests.runs import built, final_bytes, flags, losses, nano_config, run_to_end
from train.recovery.ending import finish, record_early_preemption

pytestmark = pytest.mark.usefixtures("restored_signal_handlers")


@pytest.fixture
def config(tmp_path):
    return nano_config(tmp_path, steps=30)


def at_step(run, step, action):
    """Do something as the line of a step is written."""

    actions = [action]

    class Writer(MetricWriter):
        name = "the test"

        def write(self, now, metrics):
            if now == step and actions:  # a line that was interrupted is written again
                actions.pop()()

    run.metrics._channels += MetricLog([Writer()])._channels


def status_of(config):
    found = RunFolder(config.out).read_status()
    return found["state"], found["step"], found["reason"]


@pytest.mark.fault("P4", injected="SIGTERM, SIGINT, SIGHUP", lost="0", identical=True)
@pytest.mark.fault("P5", injected="SIGUSR1, SIGUSR2", lost="0", identical=True)
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_saved_for_and_loses_no_step(config, number):
    run = built(config)
    run.stop.listen()
    at_step(run, 3, lambda: signal.raise_signal(number))
    assert finish(run) == PREEMPTED_CODE
    # Line 3 is written while step 4 runs, step 5 agrees, and step 6 runs when that is read.
    assert status_of(config) == ("preempted", 7, number.name)
    assert len(losses(config.out)) == 7
    run_to_end(config)
    straight = replace(config, out=config.out.with_name("straight"))
    run_to_end(straight)
    assert losses(config.out) == losses(straight.out)
    assert final_bytes(config.out) == final_bytes(straight.out)


def test_before_the_first_step_a_stop_ends_at_once_for_nothing_is_lost(config):
    run = built(config)
    run.stop.listen()
    run.loader.next_step = lambda: signal.raise_signal(signal.SIGTERM)
    assert finish(run) == PREEMPTED_CODE
    assert status_of(config) == ("preempted", 0, "SIGTERM")


def test_a_second_sigint_forces_and_the_one_that_torchrun_passes_on_does_not(config, monkeypatch):
    run = built(config)
    run.stop.listen()

    def thrice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        run.stop.interrupted_at -= 2
        signal.raise_signal(signal.SIGINT)

    at_step(run, 3, thrice)
    assert finish(run) == INTERRUPTED_CODE
    assert status_of(config)[::2] == (
        "failed",
        "a second SIGINT forced the end; the last checkpoint is sound",
    )


def test_a_second_sigint_while_the_end_is_recorded_has_the_same_code(config, monkeypatch):
    run = built(config)
    run.stop.listen()

    def pressed_again():
        run.stop.interrupted_at -= 2
        signal.raise_signal(signal.SIGINT)

    at_step(run, 3, lambda: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(run.saver, "wait", pressed_again)
    assert finish(run) == INTERRUPTED_CODE
    monkeypatch.undo()
    run.close()


@pytest.mark.fault("P4", injected="a signal in an evaluation", lost="0")
def test_a_stop_in_an_evaluation_leaves_it_for_the_next_start(config, monkeypatch):
    evals = EvalConfig(every=4, val_tokens=64, tasks_every=0, tasks=())
    config = replace(config, eval=evals)
    run = built(config)
    run.stop.listen()
    validate = duties.mixture_loss

    def interrupted(*args, **kwargs):
        if run.step == 4:
            signal.raise_signal(signal.SIGUSR1)
        return validate(*args, **kwargs)

    monkeypatch.setattr(duties, "mixture_loss", interrupted)
    assert finish(run) == PREEMPTED_CODE
    assert status_of(config) == ("preempted", 4, "SIGUSR1")
    assert run.results["step"] == 0


@pytest.mark.fault("P5", injected="the end of the job, by the clock", lost="0")
def test_a_run_is_done_and_saved_by_the_time_it_was_given(config):
    slow = replace(config, steps=100_000, stop_at=str(time.time() + 4.0), save=SaveConfig(100, 0))
    run = built(slow)
    assert finish(run) == PREEMPTED_CODE
    assert time.time() < float(slow.stop_at)
    state, step, reason = status_of(slow)
    assert (state, reason) == ("preempted", "stop-at")
    assert run.folder.recover_newest_checkpoint() == run.folder.checkpoint(step)


def test_the_script_ends_with_the_code_of_a_preemption(config):
    config = replace(config, steps=5000)
    with running(1, *flags(config)) as ranks:
        while not (config.out / "metrics.jsonl").exists() or not losses(config.out):
            time.sleep(0.05)
        os.kill(ranks.pids[0], signal.SIGTERM)
    assert ranks.codes == [PREEMPTED_CODE]
    assert status_of(config)[::2] == ("preempted", "SIGTERM")


BEFORE = ("train.main.check_inputs", "train.main.build_run")


def stopped_in(config, monkeypatch, part):
    """Start the script; SIGTERM comes as it begins `part`. Returns its exit code."""

    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(part, interrupted)
    monkeypatch.setattr(sys, "argv", flags(config))
    with pytest.raises(SystemExit) as ended:
        script.main()
    monkeypatch.undo()
    return ended.value.code


@pytest.mark.fault("P4", injected="SIGTERM before the data, before the run is built", lost="0")
@pytest.mark.parametrize("part", [*BEFORE, "train.preflight.dry_run.dry_run_parts"])
def test_a_stop_before_the_run_stands_is_a_preemption_and_the_next_start_begins(
    config, monkeypatch, part
):
    assert stopped_in(config, monkeypatch, part) == PREEMPTED_CODE
    assert status_of(config) == ("preempted", 0, "SIGTERM")
    assert run_to_end(config).step == 30


def test_a_stop_before_a_resume_names_the_step_that_is_saved(config, monkeypatch):
    run_to_end(replace(config, steps=6))
    RunFolder(config.out).write_status("running", 6)
    longer = replace(config, allow=("steps",))
    assert stopped_in(longer, monkeypatch, BEFORE[0]) == PREEMPTED_CODE
    assert status_of(config) == ("preempted", 6, "SIGTERM")


def test_a_stop_leaves_the_status_of_a_finished_run_and_of_another_writer(config, monkeypatch):
    run_to_end(replace(config, steps=4))
    before = status_of(config)
    stopped_in(config, monkeypatch, BEFORE[0])
    assert status_of(config) == before == ("finished", 4, "")
    RunFolder(config.out).write_status("running", 4)
    holder = RunFolder(config.out)
    holder.lock()
    (config.out / "lock").write_text("pid 1 on another machine\n")
    monkeypatch.setattr(folder_lock, "LOCK_PATIENCE_SECONDS", 0.0)
    stopped_in(config, monkeypatch, BEFORE[0])
    holder.unlock()
    assert status_of(config)[0] == "running"


def test_a_stop_while_this_process_holds_the_folder_is_noted_too(config):
    folder = RunFolder(config.out)
    folder.lock()
    with pytest.raises(SystemExit), record_early_preemption(config.out, StopRequest()):
        raise SystemExit(PREEMPTED_CODE)
    assert status_of(config)[:2] == ("preempted", 0)
    folder.unlock()
    assert not folder.is_ours()


def test_a_stop_writes_nothing_into_a_folder_of_other_things(config, monkeypatch):
    (config.out / "samples").mkdir(parents=True)
    (config.out / "samples" / "chapter1.tex").write_text("...")
    assert stopped_in(config, monkeypatch, BEFORE[0]) == PREEMPTED_CODE
    assert [path.name for path in config.out.iterdir()] == ["samples"]


def test_a_stop_in_a_folder_that_holds_only_a_log_is_noted_there(config, monkeypatch):
    config.out.mkdir()
    (config.out / "train.log").write_text("...")
    assert stopped_in(config, monkeypatch, BEFORE[0]) == PREEMPTED_CODE
    assert status_of(config) == ("preempted", 0, "SIGTERM")


def test_what_a_start_leaves_that_was_killed_early_is_no_obstacle(config):
    built(config).close()
    (config.out / "config.json").unlink()
    (config.out / ".config.json.host.1.partial").write_text("{")
    assert run_to_end(config).step == 30
