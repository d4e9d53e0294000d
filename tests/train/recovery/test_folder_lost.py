"""A run whose folder is moved, removed or taken stops, and writes nothing more there."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import train.checkpoints.checkpoint as checkpoint_module
from eval.training_config import EvalConfig, SampleConfig
from storage.checkpoint_folder import step_of, verify_checkpoint
from storage.exit_codes import FOLDER_LOST_CODE
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.launching import torchrun
from tests.runs import built, final_bytes, flags, nano_config, run_to_end, set_step
from train.main import main
from train.recovery.ending import emergency_checkpoint, finish

EVERY_STEP = SaveConfig(1, 0, keep=99)


@pytest.fixture
def config(tmp_path):
    """40 steps, a checkpoint every fifth one."""
    return nano_config(tmp_path, steps=40, save=SaveConfig(5, 0, keep=99), rehearsal=False)


def moved(out):
    out.rename(out.with_name("moved"))


def removed(out):
    shutil.rmtree(out)


def unlocked(out):
    (out / "lock").unlink()


def taken(out):
    """Renamed, and another run's under the old name."""
    moved(out)
    other = RunFolder(out)
    other.lock()
    others[out] = other  # it holds the lock as long as it lives


def unmounted(out):
    """What a volume shows that is no longer there: an empty folder."""
    moved(out)
    out.mkdir()


others: dict[Path, RunFolder] = {}


@pytest.fixture(autouse=True)
def _release():
    yield
    while others:
        others.popitem()[1].unlock()


def lose_at(run, step, how):
    """Let something happen to the run folder as the run reads the windows of a step."""
    take = run.loader.next_step

    def losing():
        if run.step == step:
            run.saver.wait()
            how(run.config.out)
        return take()

    run.loader.next_step = losing


def content(folder):
    """Every file below a folder, and what it holds."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.fault(
    "S6", injected="the folder moved, removed or unmounted in a run", lost="interval"
)
@pytest.mark.fault("P13", injected="the folder or its lock taken in a run", lost="interval")
@pytest.mark.parametrize("how", [moved, removed, unlocked, taken, unmounted])
def test_a_run_that_loses_its_folder_stops_within_a_save_interval(config, how, caplog):
    run, after = built(config), []
    lose_at(run, 12, lambda out: (how(out), after.append(content(out) if out.exists() else None)))
    assert finish(run) == FOLDER_LOST_CODE
    assert 12 < run.step <= 12 + 5 + 2
    (said,) = [r.getMessage() for r in caplog.records if "no longer this run's" in r.getMessage()]
    assert said.startswith(f"stopped at step {run.step}: {config.out} is no longer")
    now = content(config.out) if config.out.exists() else None
    if how is unlocked:  # metric lines go to the file that was open, which is still there
        assert now.keys() == after[0].keys()
    else:
        assert now == after[0]


def test_without_any_saves_the_folder_is_looked_at_by_the_clock(config, monkeypatch):
    monkeypatch.setattr("storage.ownership.folder_lock._CHECK_SECONDS", 0.0)
    run = built(replace(config, steps=10_000, save=SaveConfig(0, 0)))
    lose_at(run, 3, moved)
    assert finish(run) == FOLDER_LOST_CODE
    assert run.step <= 3 + 3
    assert not config.out.exists()


def test_a_folder_lost_after_the_last_step_gets_no_status_and_no_report(config):
    run = built(config)
    lose_at(run, 39, taken)
    assert finish(run) == FOLDER_LOST_CODE
    assert [path.name for path in config.out.iterdir()] == ["lock"]


def test_samples_and_pictures_are_not_written_into_another_runs_folder(config):
    evals = EvalConfig(every=4, val_tokens=64, tasks_every=0, tasks=())
    sample = SampleConfig(every=4, max_tokens=2)
    run = built(replace(config, eval=evals, sample=sample, save=SaveConfig(0, 0)))
    lose_at(run, 7, taken)
    assert finish(run) == FOLDER_LOST_CODE
    assert [path.name for path in config.out.iterdir()] == ["lock"]


@pytest.mark.fault("S6", injected="the folder renamed at each file of a save", lost="interval")
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "rename"])
@pytest.mark.parametrize("how", [moved, taken])
def test_a_folder_lost_inside_a_save_gets_no_half_of_it(config, monkeypatch, name, how):
    run = built(config)
    write, lost = checkpoint_module.write_tensors, []

    def losing(path, tensors):
        write(path, tensors)
        if path.name == name and not lost:
            lost.append(how(config.out))

    def losing_before_the_name(folder):
        manifest(folder)
        if name == "rename" and not lost:
            lost.append(how(config.out))

    manifest = checkpoint_module.write_manifest
    monkeypatch.setattr("model.checkpoint.write_tensors", losing)
    monkeypatch.setattr(checkpoint_module, "write_tensors", losing)
    monkeypatch.setattr(checkpoint_module, "write_manifest", losing_before_the_name)
    assert finish(run) == FOLDER_LOST_CODE
    assert lost
    left = [path.name for path in config.out.rglob("*") if path.is_file()] if how is taken else []
    assert left == ["lock"] * (how is taken)
    assert not list(config.out.glob("checkpoints/*"))


@pytest.mark.fault("P13", injected="a run that lost its folder would delete checkpoints", lost="0")
def test_nothing_is_pruned_in_a_folder_that_another_run_has_taken(config):
    run = built(replace(config, save=SaveConfig(5, 0, keep=1)))
    run_to_end(replace(config, out=config.out.with_name("other"), save=EVERY_STEP, steps=6))

    def exchanged(out):
        moved(out)
        out.with_name("other").rename(out)

    lose_at(run, 12, exchanged)
    assert finish(run) == FOLDER_LOST_CODE
    assert [step_of(path) for path in RunFolder(config.out).all_checkpoints()] == [6, 5, 4, 3, 2, 1]


def test_a_run_goes_on_in_the_folder_to_which_it_was_moved(config):
    run = built(config)
    lose_at(run, 12, moved)
    assert finish(run) == FOLDER_LOST_CODE
    again = replace(config, out=config.out.with_name("moved"))
    assert run_to_end(again).step == 40
    run_to_end(config)
    assert final_bytes(config.out) == final_bytes(again.out)


@pytest.mark.fault("P1", injected="a rank dies after the folder was moved", lost="interval")
def test_an_emergency_checkpoint_is_not_written_where_the_folder_was(config):
    run = built(config)
    set_step(run, 7)
    moved(config.out)
    with pytest.raises(ValueError, match="was moved to"):
        emergency_checkpoint(run, "a peer died")
    run.close()
    assert not config.out.exists()


def test_any_other_error_after_the_folder_was_lost_ends_the_same_way(config, caplog):
    run = built(config)

    def broken(out):
        moved(out)
        raise RuntimeError("which has its reason in the loss")

    lose_at(run, 7, broken)
    assert finish(run) == FOLDER_LOST_CODE
    assert not config.out.exists()


def test_a_start_whose_folder_is_lost_before_the_first_step_is_a_mistake_in_one_sentence(
    config, monkeypatch, capsys
):
    def lost(run):
        moved(config.out)
        try:
            run.folder.check()
        finally:
            run.close()

    monkeypatch.setattr("train.main.dry_run", lost)
    monkeypatch.setattr(sys, "argv", flags(config))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "was moved to" in capsys.readouterr().err
    assert not config.out.exists()


MOVES_ITSELF = """
import sys
from pathlib import Path
from train import main as script
from train.run import Run

heartbeat = Run.heartbeat
def moving(run):
    if run.step == 12 and run.ranks.is_main and run.config.out.exists():
        run.saver.wait()
        run.config.out.rename(run.config.out.with_name("moved"))
    heartbeat(run)

Run.heartbeat = moving
sys.argv = sys.argv[1:]
script.main()
"""


@pytest.mark.fault("S6", injected="the folder of two ranks under torchrun renamed", lost="interval")
@pytest.mark.slow
def test_torchrun_does_not_start_a_new_run_where_the_folder_was(config, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(MOVES_ITSELF)
    done = torchrun(2, "--max-restarts=1", str(program), *flags(config))
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert said.count("is no longer this run's folder") == 1
    assert not config.out.exists()
    left = RunFolder(tmp_path / "moved")
    assert json.loads(left.status.read_text())["state"] == "running"
    assert len(left.starts.read_text().splitlines()) == 1
    for path in left.all_checkpoints():
        verify_checkpoint(path)
    assert os.path.exists(left.checkpoint(10))


@pytest.mark.fault("P1", injected="all ranks killed, then the folder moved", lost="interval")
def test_a_restart_does_not_begin_a_new_run_where_the_folder_was(config, tmp_path, monkeypatch):
    (tmp_path / "job" / "attempt_0" / "0").mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "job/attempt_0/0/error.json"))
    built(config).close()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    built(config).close()
    moved(config.out)
    with pytest.raises(ValueError, match="no longer the folder in which this job began"):
        built(config)
    assert not config.out.exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    built(config).close()


def test_a_restart_of_a_job_that_never_had_a_folder_begins(config, tmp_path, monkeypatch):
    (tmp_path / "job" / "attempt_0" / "0").mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "job/attempt_0/0/error.json"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    built(config).close()
    assert config.out.exists()
