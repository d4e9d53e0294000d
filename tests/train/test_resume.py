"""Resumed runs equal uninterrupted ones: bit for bit on the CPU, on one and on four ranks."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint import load_model
from storage.atomic import read_json, write_json
from storage.checkpoint_folder import verify_checkpoint, write_manifest
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.launching import ENVIRONMENT, REPO, together, torchrun
from tests.runs import (
    KEEP_ALL,
    RECIPES,
    built,
    deterministic,
    final_bytes,
    flags,
    forget_after,
    lines,
    losses,
    nano_config,
    run_to_end,
    set_step,
    starts,
    tiny_config,
)
from train.checkpoints.checkpoint import write_checkpoint
from train.checkpoints.host_copy import state_tensors
from train.checkpoints.run_position import STATE_FORMAT
from train.loop import train
from train.main import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=100, tokenizer=small_tokenizer())
    return folder


@pytest.mark.fault("S8", injected="4 steps are repeated", lost="4", identical=True)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", save=KEEP_ALL)
    run_to_end(config)
    uninterrupted, weights = lines(config.out), final_bytes(config.out)
    forget_after(config.out, 4)
    run_to_end(config)
    assert [deterministic(x) for x in lines(config.out)] == [
        deterministic(x) for x in uninterrupted
    ]
    assert final_bytes(config.out) == weights
    discarded = (config.out / "metrics.discarded.jsonl").read_text().splitlines()
    assert len(discarded) == len(uninterrupted) - 4  # the steps were repeated, not skipped


def test_evaluation_and_sampling_do_not_change_training_by_a_bit(data, tmp_path):
    quiet = tiny_config(data, tmp_path / "quiet")
    busy = replace(
        quiet,
        out=tmp_path / "busy",
        eval=replace(quiet.eval, every=2, tasks_every=4, tasks=("pydoc_choice",), items=2),
        sample=replace(quiet.sample, every=2),
    )
    run_to_end(quiet)
    run_to_end(busy)
    assert losses(quiet.out) == losses(busy.out)
    assert final_bytes(quiet.out) == final_bytes(busy.out)


def test_a_resume_does_not_evaluate_the_same_weights_again(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", save=KEEP_ALL)
    config = replace(config, eval=replace(config.eval, every=4))
    run_to_end(config)
    measured = [x["val/loss"] for x in lines(config.out) if "val/loss" in x]
    forget_after(config.out, 4)
    checkpoint = config.out / "checkpoints" / "step_000004"
    assert read_json(checkpoint / "results.json")["step"] == 4
    run_to_end(config)
    assert [x["val/loss"] for x in lines(config.out) if "val/loss" in x] == measured


@pytest.mark.fault(
    "S3", injected="a bit in the newest checkpoint of a run", lost="interval", identical=True
)
def test_a_damaged_newest_checkpoint_is_renamed_and_the_one_before_is_used(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", save=KEEP_ALL)
    run_to_end(config)
    weights = final_bytes(config.out)
    newest = config.out / "checkpoints" / "step_000008" / "optimizer.safetensors"
    broken = bytearray(newest.read_bytes())
    broken[len(broken) // 2] ^= 1
    newest.write_bytes(broken)
    run_to_end(config)
    assert final_bytes(config.out) == weights
    assert (config.out / "checkpoints" / "step_000008.broken").is_dir()


@pytest.mark.fault("R6", injected="a finished run started again", lost="0", identical=True)
def test_a_finished_run_is_not_changed(data, tmp_path, monkeypatch, caplog):
    config = tiny_config(data, tmp_path / "run")
    run_to_end(config)
    before = {p: p.read_bytes() for p in config.out.rglob("*") if p.is_file()}
    monkeypatch.setattr(sys, "argv", flags(config))
    main()
    assert {p: p.read_bytes() for p in config.out.rglob("*") if p.is_file()} == before
    assert "is finished (8 steps). To train longer, give a larger --steps and" in caplog.text


def test_a_run_killed_between_its_last_save_and_its_end_is_only_marked_as_finished(data, tmp_path):
    config = tiny_config(data, tmp_path / "run")
    config = replace(config, eval=replace(config.eval, every=4))
    run_to_end(config)
    RunFolder(config.out).write_status("running", 8)
    before = [deterministic(x) for x in lines(config.out)]
    run_to_end(config)
    assert [deterministic(x) for x in lines(config.out)] == before
    assert RunFolder(config.out).read_status()["state"] == "finished"


@pytest.mark.fault("R1", injected="resumed at step 4 of 8, four ranks", identical=True)
@pytest.mark.long
def test_four_resumed_ranks_equal_four_uninterrupted_ones_bit_for_bit(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", micro_batch=1, save=KEEP_ALL)
    command = flags(config, "--save.keep", "99")
    done = torchrun(4, *command)
    assert done.returncode == 0, done.stderr[-2000:]
    uninterrupted, weights = losses(config.out), final_bytes(config.out)
    forget_after(config.out, 4)
    done = torchrun(4, *command)
    assert "step 4 of 8" in done.stdout
    assert losses(config.out) == uninterrupted
    assert final_bytes(config.out) == weights


@pytest.mark.fault("R2", injected="two ranks continued on one: same data, losses to 1e-5")
def test_two_ranks_train_like_one_and_a_resume_may_change_the_number_of_ranks(data, tmp_path):
    one = tiny_config(data, tmp_path / "one")
    two = tiny_config(data, tmp_path / "two", save=KEEP_ALL)
    run_to_end(one)
    assert together(2, *flags(two, "--save.keep", "99")).returncode == 0
    assert losses(two.out) == pytest.approx(losses(one.out), rel=1e-5)
    digests = [[x.get("data/digest") for x in lines(c.out)] for c in (one, two)]
    assert digests[0] == digests[1]
    forget_after(two.out, 4)
    run_to_end(two)  # the rest on one rank
    assert losses(two.out) == pytest.approx(losses(one.out), rel=1e-5)
    assert [x.get("data/digest") for x in lines(two.out)] == digests[0]


def wait_for_lines(folder, count, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").is_file() and len(lines(folder)) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"the run has not written {count} lines")


def start_and_signal(command, folder, number):
    """Start a run and send it a signal after a few steps."""
    with subprocess.Popen(
        command, cwd=REPO, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for_lines(folder, 12, process)
        process.send_signal(number)


@pytest.mark.long
def test_a_killed_run_that_is_started_again_equals_an_uninterrupted_one(data, tmp_path):
    config = tiny_config(data, tmp_path / "killed", steps=60, save=SaveConfig(5, 0))
    command = [sys.executable, *flags(config)]
    start_and_signal(command, config.out, signal.SIGKILL)
    status = RunFolder(config.out).read_status()
    assert status["state"] == "running"
    assert 0 < status["step"] < 60
    subprocess.run(command, cwd=REPO, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    uninterrupted = replace(config, out=tmp_path / "uninterrupted")
    run_to_end(uninterrupted)
    assert losses(config.out) == losses(uninterrupted.out)
    assert final_bytes(config.out) == final_bytes(uninterrupted.out)
    assert RunFolder(config.out).read_status() == {"state": "finished", "step": 60, "reason": ""}


@pytest.mark.fault("P4", injected="SIGTERM to torchrun of two ranks", lost="0", identical=True)
@pytest.mark.long
def test_sigterm_to_torchrun_saves_the_same_step_on_all_ranks_and_loses_no_step(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", steps=200)
    torchrun_command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun_command, "--nproc_per_node=2", *flags(config)]
    start_and_signal(command, config.out, signal.SIGTERM)
    status = RunFolder(config.out).read_status()
    assert (status["state"], status["reason"]) == ("preempted", "SIGTERM")
    assert 12 <= status["step"] == len(losses(config.out)) < 60
    # Both on two ranks: with this learning rate a loss spike at step 126 magnifies the rounding of
    # another number of ranks to 1 %.
    uninterrupted = replace(config, out=tmp_path / "uninterrupted")
    for rest in (config, uninterrupted):
        assert together(2, *flags(rest)).returncode == 0
    assert losses(config.out) == losses(uninterrupted.out)
    assert final_bytes(config.out) == final_bytes(uninterrupted.out)


def hear_hangups():
    """Take SIGHUP as by default, also where the tests themselves were started under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.fault(
    "P4", injected="SIGHUP to torchrun and its ranks, without and under nohup", lost="0"
)
@pytest.mark.parametrize(("nohup", "state"), [([], "preempted"), (["nohup"], "finished")])
@pytest.mark.long
def test_when_the_terminal_closes_the_run_saves_and_under_nohup_it_continues(
    data, tmp_path, nohup, state
):
    config = tiny_config(data, tmp_path / "run", steps=200)
    command = [*nohup, "launch/node.sh", *flags(config)[1:]]
    variables = ENVIRONMENT | {"NPROC": "2"}
    with subprocess.Popen(
        command,
        cwd=REPO,
        env=variables,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=hear_hangups,
    ) as process:
        wait_for_lines(config.out, 12, process)
        os.killpg(process.pid, signal.SIGHUP)  # as a terminal does when it closes
    status = RunFolder(config.out).read_status()
    assert (status["state"], status["step"]) == (state, len(losses(config.out)))


def test_fine_tuning_starts_from_the_weights_alone(data, tmp_path):
    first = tiny_config(data, tmp_path / "first", steps=3)
    run_to_end(first)
    latest = first.out / "checkpoints" / "latest"
    tuned = built(tiny_config(data, tmp_path / "tuned", init=latest))
    own = load_model(latest).state_dict()
    assert all((own[k] == v).all() for k, v in tuned.model.state_dict().items())
    assert (tuned.step, tuned.learner.optimizer.state) == (0, {})
    tuned.close()


def test_a_checkpoint_has_the_moments_and_step_count_of_every_parameter(data, tmp_path):
    config = tiny_config(data, tmp_path / "run")
    model = run_to_end(config).model
    tensors = load_file(config.out / "checkpoints" / "latest" / "optimizer.safetensors")
    names = [name for name, _ in model.named_parameters()]
    assert sorted(tensors) == sorted(
        f"{key}.{name}" for key in ("exp_avg", "exp_avg_sq", "step") for name in names
    )
    assert tensors["step.wte.weight"].item() == 8


def test_resuming_on_other_data_is_refused_with_both_fingerprints(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", save=KEEP_ALL)
    run_to_end(config)
    forget_after(config.out, 4)
    other = tiny_data_set(tmp_path / "other", documents=100, seed=9, tokenizer=small_tokenizer())
    with pytest.raises(ValueError, match=other.fingerprint[:12]):
        built(replace(config, data=(tmp_path / "other",)))


def test_a_checkpoint_of_a_newer_format_is_refused(data, tmp_path):
    config = tiny_config(data, tmp_path / "run")
    run_to_end(config)
    folder = config.out / "checkpoints" / "step_000008"
    write_json(
        folder / "state.json", read_json(folder / "state.json") | {"format": STATE_FORMAT + 1}
    )
    write_manifest(folder)
    refused = f"is of format {STATE_FORMAT + 1}, this version reads 1 to {STATE_FORMAT}; update"
    with pytest.raises(ValueError, match=refused):
        built(config)


@pytest.fixture
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def resumed_at(uninterrupted, copy, step):
    """Copy a finished run without its checkpoints after `step` and resume it; returns the step."""
    shutil.copytree(uninterrupted.out, copy, ignore=shutil.ignore_patterns("tensorboard"))
    forget_after(copy, step)
    run_to_end(replace(uninterrupted, out=copy))
    return starts(copy)[-1]


def assert_resumes_at_every_step(folder, steps, every=1, **changes):
    """Resume the run at every step: it resumes at that step and ends with the same bits."""
    save = SaveConfig(1, 0, keep=99)
    config = nano_config(folder, steps=steps, save=save, rehearsal=False, **changes)
    run_to_end(config)
    wanted = [deterministic(x) for x in lines(config.out)], final_bytes(config.out)
    for step in range(1, steps, every):
        copy = folder / f"from_{step}"
        assert resumed_at(config, copy, step) == step
        assert ([deterministic(x) for x in lines(copy)], final_bytes(copy)) == wanted
        assert len((copy / "metrics.discarded.jsonl").read_text().splitlines()) == steps + 1 - step
        shutil.rmtree(copy)


@pytest.mark.fault("R1", injected="resumed at 3 of 10 steps, one rank", lost="0", identical=True)
@pytest.mark.usefixtures("_no_waiting_for_the_disk")
def test_a_run_resumed_at_any_step_ends_with_the_same_bits(tmp_path):
    assert_resumes_at_every_step(tmp_path, 10, every=4)


@pytest.mark.long
@pytest.mark.fault("R1", injected="resumed at each of 20 steps, one rank", lost="0", identical=True)
@pytest.mark.usefixtures("_no_waiting_for_the_disk")
@pytest.mark.parametrize("changes", [{"micro_batch": 4}, {"micro_batch": 2, "dtype": "bfloat16"}])
def test_a_run_resumed_at_each_step_ends_with_the_same_bits(tmp_path, changes):
    assert_resumes_at_every_step(tmp_path, 20, **changes)


@pytest.mark.fault("N5", injected="global random states changed in each step", identical=True)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_state_of_global_random_generators_does_not_affect_the_numbers(tmp_path, recipe):
    config = replace(nano_config(tmp_path, rehearsal=False), **RECIPES[recipe])
    run_to_end(config)
    other = built(replace(config, out=tmp_path / "other"))
    take = other.loader.next_step

    def disturbed():
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(4711 + other.step)
        torch.rand(3)
        return take()

    other.loader.next_step = disturbed
    train(other)
    other.close()
    assert losses(other.folder.path) == losses(config.out)
    assert final_bytes(other.folder.path) == final_bytes(config.out)


@pytest.mark.fault("R7", injected="torch 2.10 and another thread count in the record", lost="0")
@pytest.mark.fault("N5", injected="another thread count in the record", lost="0")
def test_settings_that_affect_rounding_are_warned_of_and_the_run_continues(tmp_path, caplog):
    config = nano_config(tmp_path, save=KEEP_ALL)
    run_to_end(config)
    forget_after(config.out, 4)
    record = read_json(config.out / "config.json")
    record["run"] |= {"torch": "2.10.0", "threads": 64}
    write_json(config.out / "config.json", record)
    run_to_end(config)
    assert f"torch 2.10.0 -> {torch.__version__}, threads 64 -> " in caplog.text
    assert starts(config.out) == [0, 4]


@pytest.mark.fault(
    "R8", injected="clock in 1970, other host, moved folders", lost="0", identical=True
)
def test_another_clock_host_and_folder_change_nothing(tmp_path, monkeypatch):
    config = nano_config(tmp_path / "here", save=KEEP_ALL)
    run_to_end(config)
    curve, weights = losses(config.out), final_bytes(config.out)
    forget_after(config.out, 4)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    monkeypatch.setattr("time.time", lambda clock=time.monotonic: clock() % 1000)
    moved = replace(config, data=(tmp_path / "there/data",), out=tmp_path / "there/run")
    run_to_end(moved)
    assert starts(moved.out) == [0, 4]
    assert (losses(moved.out), final_bytes(moved.out)) == (curve, weights)


@pytest.mark.fault("S12", injected="a step that was saved is repeated and saved again", lost="0")
def test_a_complete_checkpoint_of_the_same_step_is_kept_and_a_damaged_one_is_renamed(
    tmp_path, caplog
):
    config = nano_config(tmp_path, save=KEEP_ALL)
    run_to_end(config)
    run = built(replace(config, out=tmp_path / "other"))
    folder = RunFolder(config.out)
    newest = folder.checkpoint(8)
    before = {p: p.read_bytes() for p in newest.rglob("*") if p.is_file()}
    set_step(run, 8)
    contents = run.contents(state_tensors(run.model, run.learner.optimizer))
    write_checkpoint(folder, contents)
    assert {p: p.read_bytes() for p in newest.rglob("*") if p.is_file()} == before
    (newest / "model.safetensors").write_bytes(b"damaged")
    write_checkpoint(folder, contents)
    run.close()
    verify_checkpoint(newest)
    assert len(list(newest.parent.glob("step_000008.broken*"))) == 1
