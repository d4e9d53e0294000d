"""A watcher gives the training loop's numbers, once per checkpoint."""

import json
import logging
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.tokenizer import gpt2_tokenizer
from eval import subject
from eval.result import TaskResult, load_items
from eval.subject import EvalOptions
from eval.tasks.registry import TASKS, EvalTask
from eval.training_config import EvalConfig
from eval.watching import live_run
from eval.watching.evals_file import EvalsFile
from eval.watching.live_run import PINNED_PREFIX, with_run_defaults
from eval.watching.watch import WatchRequest, watch
from model import checkpoint_source
from model.checkpoint import load_model, save_model
from storage.checkpoint_folder import write_manifest
from storage.digest import file_sha256
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.data_sets import tiny_data_set
from tests.eval_subjects import ALONE
from tests.launching import together
from tests.runs import lines, run_to_end, tiny_config

BOTH = ("val_loss", "pydoc_choice")
EVAL = EvalConfig(every=4, val_tokens=64, tasks_every=4, tasks=("pydoc_choice",), items=3)
NEVER = replace(EVAL, every=0, tasks_every=0)
SAVE = SaveConfig(every=4, every_minutes=0, keep=99)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A finished run without evaluations, with checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("watch")
    tiny_data_set(folder / "data", documents=100)
    config = tiny_config(folder / "data", folder / "run", eval=NEVER, save=SAVE)
    run_to_end(config)
    return config


@pytest.fixture
def run(config, tmp_path, caplog, monkeypatch):
    """A copy of that run. The tokenizer, which takes most of the time, is loaded only once."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(subject, "load_tokenizer", lambda _: gpt2_tokenizer())
    shutil.copytree(config.out, tmp_path / "run", symlinks=True)
    return RunFolder(tmp_path / "run")


@pytest.fixture
def quick(monkeypatch):
    """Replace pydoc_choice by a task that takes no time."""
    instant = EvalTask(lambda *_: TaskResult({"pydoc_choice/acc": 0.5}))
    monkeypatch.setitem(TASKS, "pydoc_choice", instant)


def watch_run(run, *tasks, idle_minutes=None, items_out=None, **options):
    """Watch until the watch ends. Returns why it ended."""
    tasks = tasks or ("pydoc_choice",)
    return watch(
        WatchRequest(run.path, tasks, EvalOptions(**options), items_out, idle_minutes), ALONE
    )


def evals(run):
    return [json.loads(line) for line in run.evals.read_text().splitlines()]


def digest(run, step):
    return file_sha256(run.checkpoint(step) / "model.safetensors")


def steps(run):
    return [line["step"] for line in evals(run)]


def scalars(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def on_sleep(monkeypatch, *happenings, seconds=2.0):
    """Each time the watcher sleeps, `seconds` pass and the next of `happenings` is called."""
    clock = {"now": 0.0}
    left = iter(happenings)

    def sleep(_):
        clock["now"] += seconds
        next(left)()

    fake = SimpleNamespace(sleep=sleep, monotonic=lambda: clock["now"])
    monkeypatch.setattr("eval.watching.watch.time", fake)
    monkeypatch.setattr("eval.watching.live_run.time", fake)


def nothing():
    """A happening that does nothing."""


def test_a_watcher_gives_the_numbers_of_the_training_loop_bit_for_bit(config, run, tmp_path):
    looped = replace(config, out=tmp_path / "looped", eval=EVAL)
    run_to_end(looped)
    asked = WatchRequest(run.path, (), EvalOptions(), None, None)  # as its config.json says
    watch(asked, ALONE)
    for found in evals(run):
        line = next(line for line in lines(looped.out) if line["step"] == found["step"])
        tags = {tag: line[tag] for tag in line if tag.startswith(("val/", "pydoc_choice/"))}
        assert {"val/loss", "val/bits_per_byte", "pydoc_choice/acc"} <= tags.keys()
        known = {"tasks": " ".join(BOTH), "options": "", "weights": digest(run, line["step"])}
        assert found == {"step": line["step"], **tags, **known}
    assert steps(run) == [4, 8]


def test_trainer_and_watcher_write_their_curves_to_separate_folders(run):
    watch_run(run, "val_loss")
    measured = [(line["step"], pytest.approx(line["val/loss"])) for line in evals(run)]
    assert scalars(run.eval_tensorboard, "loss/val") == measured
    assert [step for step, _ in scalars(run.tensorboard, "loss/train")] == [*range(8)]


def test_a_second_watch_evaluates_only_what_is_new(run, quick):
    watch_run(run)
    assert "evaluated 0 checkpoints" in watch_run(run)
    watch_run(run, *BOTH)
    assert [line["tasks"] for line in evals(run)] == ["pydoc_choice"] * 2 + ["val_loss"] * 2
    watch_run(run, items=2)
    assert [line["options"] for line in evals(run)[4:]] == ["items=2"] * 2


def repeat_step(run, seed):
    """Replace the weights of step 4 by those of this seed, as if the step had been repeated."""
    checkpoint = run.checkpoint(4)
    weights = load_model(checkpoint)
    weights.initialise(seed)
    save_model(checkpoint, weights)
    write_manifest(checkpoint)


def test_a_repeated_step_is_evaluated_again_if_its_weights_differ(run, quick, caplog):
    repeat_step(run, seed=1)
    watch_run(run)
    repeat_step(run, seed=1)  # bit for bit, as after a resume on the same number of ranks
    assert "evaluated 0 checkpoints" in watch_run(run)
    assert "other weights" not in caplog.text
    repeat_step(run, seed=2)
    assert "evaluated 1 checkpoint" in watch_run(run)
    assert "step 4 has other weights than were measured; it is measured again" in caplog.text
    assert [(line["step"], line["weights"]) for line in evals(run)[2:]] == [(4, digest(run, 4))]


def test_a_step_repeated_during_a_watch_is_evaluated_again(run, quick, monkeypatch):
    run.write_status("running", 8)
    on_sleep(monkeypatch, lambda: repeat_step(run, seed=3), lambda: run.write_status("finished", 8))
    assert "evaluated 3 checkpoints" in watch_run(run)
    assert steps(run) == [4, 8, 4]


def test_checkpoints_are_evaluated_as_they_appear_until_the_run_ends(run, quick, monkeypatch):
    later = run.checkpoints.rename(run.path / "later")
    run.checkpoints.mkdir()
    run.write_status("running", 0)

    def appear(step):
        (later / f"step_{step:06d}").rename(run.checkpoint(step))

    def finish():
        assert steps(run) == [4]
        appear(8)
        run.write_status("finished", 8)

    on_sleep(monkeypatch, nothing, lambda: appear(4), finish)
    assert "finished at step 8; evaluated 2 checkpoints" in watch_run(run)
    assert steps(run) == [4, 8]


def test_a_checkpoint_pruned_while_it_is_read_is_still_evaluated(run, quick, monkeypatch):
    def prune(folder):
        assert folder.name.startswith(PINNED_PREFIX)
        shutil.rmtree(run.checkpoints / folder.name.removeprefix(PINNED_PREFIX))

    monkeypatch.setattr(checkpoint_source, "verify_checkpoint", prune)
    watch_run(run)
    assert steps(run) == [4, 8]
    assert [path.name for path in run.checkpoints.iterdir()] == ["latest"]


def test_without_hard_links_a_pruned_checkpoint_is_skipped(run, quick, monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError("no links here")

    for step in (2, 3):
        shutil.copytree(run.checkpoint(4), run.checkpoint(step))
        state = run.checkpoint(step) / "state.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"step": step}))
    checks = iter([lambda: [shutil.rmtree(run.checkpoint(step)) for step in (2, 3)]])
    monkeypatch.setattr(live_run.os, "link", refuse)
    monkeypatch.setattr(checkpoint_source, "verify_checkpoint", lambda _: next(checks, nothing)())
    watch_run(run)
    assert steps(run) == [4, 8]
    for step in (2, 3):  # one while it was read, one while it waited
        assert caplog.messages.count(f"step {step} was pruned, skipped") == 1


def test_a_damaged_checkpoint_is_skipped_and_the_reason_logged_once(run, quick, caplog):
    weights = run.checkpoint(4) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    watch_run(run)
    assert steps(run) == [8]
    said = [text for text in caplog.messages if text.startswith("step 4 is skipped: ")]
    assert len(said) == 1
    assert "differs from its digest" in said[0]


def test_a_checkpoint_of_another_run_is_named_and_not_evaluated(run, quick, caplog):
    foreign = run.checkpoint(100)
    shutil.copytree(run.all_checkpoints()[0], foreign)
    watch_run(run)
    assert 100 not in steps(run)
    assert caplog.text.count("step_000100 is not a checkpoint of this run (its state is of ") == 1


def test_a_task_that_fails_on_one_checkpoint_does_not_end_the_watch(run, monkeypatch, caplog):
    def choice(subject, options):
        if not scores:
            scores.append(0.5)
            raise ValueError("scores are not finite")
        return TaskResult({"pydoc_choice/acc": scores[0]})

    scores = []
    monkeypatch.setitem(TASKS, "pydoc_choice", EvalTask(choice))
    watch_run(run, *BOTH)
    assert [line["tasks"] for line in evals(run)] == ["val_loss", "val_loss pydoc_choice"]
    assert "step 4: pydoc_choice failed (scores are not finite)" in caplog.text


def test_an_option_that_no_checkpoint_can_satisfy_ends_the_watch(run):
    with pytest.raises(ValueError, match="val_tokens=9999999 is .* windows"):
        watch_run(run, "val_loss", val_tokens=9999999)
    assert steps(run) == []


def test_a_missing_file_ends_the_watch_before_a_checkpoint_is_skipped(run):
    record = json.loads(run.config.read_text())
    record["config"]["eval"]["hellaswag_file"] = "gone.jsonl"
    run.config.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"gone\.jsonl, the file for hellaswag, does not exist"):
        watch_run(run, "hellaswag")
    assert steps(run) == []


def test_a_preempted_run_is_waited_for(run, quick, monkeypatch, caplog):
    run.write_status("preempted", 8, "SIGTERM")
    on_sleep(monkeypatch, nothing, lambda: run.write_status("finished", 8), seconds=1e6)
    assert "finished at step 8" in watch_run(run)
    assert "was preempted at step 8 (SIGTERM); waiting for it" in caplog.text


def test_idle_minutes_without_a_change_end_the_watch(run, quick, monkeypatch):
    run.write_status("preempted", 8)
    alive = [lambda: run.write_status("preempted", 8)] * 3
    on_sleep(monkeypatch, *alive, nothing, nothing, seconds=31.0)
    end = watch_run(run, idle_minutes=1.0)
    assert "has not changed for 1 minutes; evaluated 2 checkpoints" in end


def test_a_killed_run_is_recognised_by_its_free_lock(run, quick, monkeypatch, caplog):
    run.write_status("running", 6)
    other = RunFolder(run.path)
    other.lock()
    noticed = []

    def note():
        noticed.append("no process holds its lock: it died after step 6" in caplog.text)

    def die():
        note()
        other.unlock()

    def finish():
        note()
        run.write_status("finished", 8)

    on_sleep(monkeypatch, nothing, nothing, die, finish, seconds=31.0)
    watch_run(run)
    assert noticed == [False, True]


def test_a_failed_run_ends_the_watch_unless_it_restarts(run, quick, monkeypatch):
    def fail(step):
        return lambda: run.write_status("failed", step, "OSError: disk full")

    fail(6)()
    again = [lambda: run.write_status("running", 6), fail(7), nothing]
    on_sleep(monkeypatch, *again, nothing, seconds=31.0)
    assert "failed at step 7 (OSError: disk full); evaluated 2 checkpoints" in watch_run(run)


def test_a_stop_request_keeps_results_and_the_next_watch_does_the_rest(run, quick, monkeypatch):
    def stopped(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        return TaskResult({"pydoc_choice/acc": 0.5})

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as inside:
        inside.setitem(TASKS, "pydoc_choice", EvalTask(stopped))
        assert "SIGTERM received; evaluated 1 checkpoint" in watch_run(run, *reversed(BOTH))
    assert signal.getsignal(signal.SIGTERM) is handler
    watch_run(run, *reversed(BOTH))
    done = [(line["step"], line["tasks"]) for line in evals(run)]
    assert done == [(4, "pydoc_choice"), (4, "val_loss"), (8, "pydoc_choice val_loss")]


def test_nothing_is_written_until_a_run_starts(tmp_path, monkeypatch):
    later = RunFolder(tmp_path / "later")
    on_sleep(monkeypatch, nothing, nothing, seconds=31.0)
    assert "has not changed" in watch_run(later, idle_minutes=1.0)
    assert not later.path.exists()


@pytest.mark.parametrize("name", ["", "checkpoints"])
def test_a_folder_that_is_not_a_runs_is_refused(run, name):
    run.config.write_text('{"model_type": "gpt2"}')  # as an export has it
    with pytest.raises(ValueError, match="give (one|a folder) such as runs/gpt2"):
        watch_run(RunFolder(run.path / name))


def test_a_second_watcher_at_the_same_time_is_refused(run, quick):
    first = EvalsFile(run.evals, EvalOptions())
    with pytest.raises(ValueError, match="written by another process that watches this run"):
        watch_run(run)
    first.close()
    assert "evaluated 2" in watch_run(run)


def test_items_are_written_to_one_folder_per_step(run, tmp_path):
    watch_run(run, items=3, items_out=tmp_path / "items")
    tables = sorted((tmp_path / "items").rglob("*.npz"))
    assert [path.parent.name for path in tables] == ["step_000004", "step_000008"]
    assert len(load_items(tables[0]).ids) == 3


def test_options_not_given_are_those_of_the_run():
    own = {"items": 7, "hellaswag_file": "/gone/h.jsonl", "task_file": ["piqa=/gone/p.jsonl"]}
    record = {"config": {"eval": own}, "run": {"micro_batch": 2, "dtype": "bfloat16"}}
    filled = with_run_defaults(record, EvalOptions(), ("val_loss",))
    assert filled == EvalOptions(items=7, micro_batch=2, dtype="bfloat16")
    given = EvalOptions(items=1, micro_batch=3, dtype="float32")
    assert with_run_defaults(record, given, ("val_loss",)) == given
    with pytest.raises(ValueError, match=r"/gone/h.jsonl, the file for hellaswag, does not exist"):
        with_run_defaults(record, EvalOptions(), ("hellaswag",))
    another = EvalOptions(task_file=(f"hellaswag={__file__}",))
    found = with_run_defaults(record, another, ("hellaswag",)).files
    assert found == {"hellaswag": Path(__file__)}


def test_two_ranks_give_the_same_bits(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "both", symlinks=True)
    watch_run(run, *BOTH)
    command = ["--watch", str(tmp_path / "both"), "--tasks", *BOTH, "--device", "cpu"]
    done = together(2, "eval/main.py", *command)
    assert done.returncode == 0, done.stderr
    assert "finished at step 8; evaluated 2 checkpoints" in done.stdout
    assert (tmp_path / "both/evals.jsonl").read_text() == run.evals.read_text()
