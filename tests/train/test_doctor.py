"""The doctor: its table of checks, its exit code, and that it leaves nothing behind."""

import errno
import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from model.estimates.memory import StepShape, predict_memory
from model.estimates.updates import adamw_update
from storage import locks
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.data_sets import tiny_data_set
from tests.launching import together
from tests.runs import alone, built, flags, run_to_end, tiny_config
from train import doctor
from train.doctor import (
    check_data,
    check_dry_run,
    check_free_space,
    check_run_folder,
    format_table,
    run_checks,
)
from train.preflight.inputs import check_inputs
from train.preflight.needs import memory_needed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=60)
    return folder


def doctor_flags(config):
    return ["train/doctor.py", *flags(config)[1:]]


def verdicts(found):
    return {check.name: check.verdict for check in found}


def test_on_a_sound_machine_all_checks_pass_and_nothing_is_left_behind(data, tmp_path):
    config = tiny_config(data, tmp_path / "runs" / "run")
    found = run_checks(config, alone())
    assert set(verdicts(found).values()) == {"ok"}, format_table(found)
    assert list(verdicts(found)) == [
        *("versions", "devices", "clocks", "arithmetic", "all-reduce", "run folder"),
        *("data and configuration", "free space", "dry run", "memory", "time"),
    ]
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_it_says_what_the_run_will_need_as_the_cost_model_does(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", batch_tokens=256, micro_batch=4)
    run_to_end(replace(config, steps=4))
    run = built(replace(config, out=tmp_path / "other"))
    steps = replace(config, steps=104, allow=("steps",))
    *_, memory, time = check_dry_run(steps, alone(), check_inputs(steps, alone()))
    network = run.model.config
    update = adamw_update(network, "cpu")
    step = StepShape(4, torch.float32, False, device="cpu", fused_loss=True, update=update)
    predicted = predict_memory(network, step)
    peak = memory_needed(run, 2 * (predicted.peak + predicted.host_copy))
    run.close()
    total = (predicted.peak + predicted.host_copy) / 2**30
    assert peak.verdict == "ok"
    assert peak.text.startswith(f"predicted peak {total:.1f} of {2 * total:.1f} GiB a rank")
    assert memory_needed(run, predicted.peak).verdict == "warn"
    assert memory.verdict == "ok"
    found = re.match(r"about ([\d.]+) (s|min) for 100 steps of ([\d.e-]+) s \(4 x a", time.text)
    assert found is not None, time.text
    seconds = float(found[1]) * {"s": 1, "min": 60}[found[2]]
    assert seconds == pytest.approx(100 * float(found[3]), rel=0.05, abs=0.06)


def test_two_ranks_are_checked_together_with_exit_code_0(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", micro_batch=1)
    done = together(2, *doctor_flags(config))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ready to start" in done.stdout
    assert re.search(r"ok +all-reduce +\d+\.\d+ GB/s on the bus \(8 MB in .* gloo\)", done.stdout)
    assert re.search(r"ok +dry run +training step, checkpoint, logs in", done.stdout)


def test_a_damaged_shard_is_named_with_exit_code_1(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    tiny_data_set(tmp_path / "set", documents=60)
    shard = next((tmp_path / "set").glob("train_*1.npy"))
    shard.write_bytes(shard.read_bytes()[:-2])
    config = tiny_config(tmp_path / "set", tmp_path / "run")
    monkeypatch.setattr(sys, "argv", doctor_flags(config))
    with pytest.raises(SystemExit, match="1"):
        doctor.main()
    assert re.search(rf"fail +data and configuration +.*{shard.name}", caplog.text)
    assert "do not start: data and configuration" in caplog.text


def test_a_run_folder_that_another_process_writes_is_reported(data, tmp_path):
    config = tiny_config(data, tmp_path / "run")
    other = built(config)
    assert check_run_folder(config, alone()).text.endswith("is being written by another run")
    other.close()
    assert "contains a run, running at step 0" in check_run_folder(config, alone()).text


def test_a_file_system_without_locks_is_a_warning(data, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    config = tiny_config(data, tmp_path / "run")
    built(config).close()
    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    found = check_run_folder(config, alone())
    assert (found.verdict, "has no locks" in found.text) == ("warn", True)


def test_a_damaged_status_is_warned_of(data, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.status.write_text("{")
    found = check_run_folder(tiny_config(data, tmp_path / "run"), alone())
    assert (found.verdict, "status.json" in found.text) == ("warn", True)


@pytest.mark.parametrize(("free", "verdict"), [(10**12, "ok"), (5 * 10**7, "warn"), (10, "fail")])
def test_free_space_is_compared_with_the_checkpoints(data, tmp_path, monkeypatch, free, verdict):
    config = tiny_config(data, tmp_path / "run", save=SaveConfig(keep=2, keep_best=0))
    inputs = check_inputs(config, alone())
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    found = check_free_space(config, inputs, alone())
    assert found.verdict == verdict
    assert "for 3 checkpoints of 0.01 GB" in found.text


def test_existing_checkpoints_are_not_counted_again(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", save=SaveConfig(2, 0, keep=2, keep_best=0))
    run_to_end(config)
    found = check_free_space(config, check_inputs(config, alone()), alone())
    assert "for 2 checkpoints of 0.01 GB" in found.text


def test_an_impossible_configuration_is_a_failed_check(data, tmp_path):
    config = replace(tiny_config(data, tmp_path / "run"), batch_tokens=100)
    inputs, found = check_data(config, alone())
    assert inputs is None
    assert (found.verdict, "not a multiple of" in found.text) == ("fail", True)


def test_a_dry_run_that_fails_is_a_failed_check_and_leaves_nothing_behind(
    data, tmp_path, monkeypatch
):
    config = tiny_config(data, tmp_path / "run")
    monkeypatch.setattr("train.preflight.dry_run.write_checkpoint", lambda *_: json.loads("{"))
    [found] = check_dry_run(config, alone(), check_inputs(config, alone()))
    assert (found.verdict, "checkpoint failed" in found.text) == ("fail", True)
    assert list(tmp_path.glob(".run*")) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_that_cannot_be_built_is_a_failed_check(data, tmp_path, monkeypatch, caplog, rank):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    config = tiny_config(data, tmp_path / "run")
    monkeypatch.setattr(doctor, "build_run", fail)
    ranks = replace(alone(), rank=rank)
    [found] = check_dry_run(config, ranks, check_inputs(config, alone()))
    assert (found.verdict, found.text) == ("fail", "OutOfMemoryError: CUDA out of memory")
    assert ("dry run: OutOfMemoryError" in caplog.text) == (rank == 1)


def test_the_help_text_names_the_doctor(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train/doctor.py", "demo", "--help"])
    with pytest.raises(SystemExit, match="0"):
        doctor.main()
    page = capsys.readouterr().out
    assert page.startswith("usage: train/doctor.py [PRESET]")
    assert "versions, devices, clocks, arithmetic" in page
