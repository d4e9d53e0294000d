"""Checkpoints are written beside training, and a disk that fails never stops it."""

import errno
import logging
import re
import resource
import shutil
import threading
from dataclasses import replace

import pytest
import torch

import train.checkpoints.background_save as saver_module
import train.checkpoints.checkpoint as checkpoint_module
from eval.training_config import EvalConfig
from storage.checkpoint_folder import verify_checkpoint
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.runs import built, lines, losses, nano_config, run_to_end, set_step
from train.checkpoints.host_copy import state_tensors
from train.loop import train
from train.recovery.ending import finish
from train.saving import save, save_due


@pytest.fixture
def config(tmp_path):
    """Eight steps, a checkpoint every second one."""
    return nano_config(tmp_path, save=SaveConfig(2, 0, 99))


@pytest.fixture
def gate(monkeypatch):
    """Holds every writing thread back until it is set."""
    opened, write = threading.Event(), saver_module.write_checkpoint

    def held_back(folder, contents):
        assert opened.wait(60)
        return write(folder, contents)

    monkeypatch.setattr(saver_module, "write_checkpoint", held_back)
    return opened


def steps_of(config):
    """The steps of the checkpoints, each checked byte for byte."""
    found = RunFolder(config.out).all_checkpoints()
    for path in found:
        verify_checkpoint(path)
    return sorted(int(path.name.removeprefix("step_")) for path in found)


def failing(monkeypatch, error, steps):
    """Let writing the weights fail at these steps."""
    write = checkpoint_module.write_tensors

    def sometimes(path, tensors):
        if any(f"step_{step:06d}" in str(path) for step in steps):
            path.write_bytes(b"half")
            raise error
        write(path, tensors)

    monkeypatch.setattr(checkpoint_module, "write_tensors", sometimes)


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(config, gate):
    run = built(replace(config, save=SaveConfig(0, 0)))
    set_step(run, 0)
    run.steps = 2
    run.saver.wait()
    before = {
        name: t.clone() for name, t in state_tensors(run.model, run.learner.optimizer).items()
    }
    save(run)
    assert run.saver.busy
    threading.Timer(0.2, gate.set).start()  # the last save waits for this one
    train(run)
    run.close()
    early = RunFolder(config.out).checkpoint(0)
    written = torch.from_file(
        str(early / "model.safetensors"), size=(early / "model.safetensors").stat().st_size,
        dtype=torch.uint8,
    )  # fmt: skip
    weight = before["weights.ln_f.bias"]
    assert not torch.equal(run.model.ln_f.bias, weight)
    assert bytes(weight.numpy()) in bytes(written.numpy())


@pytest.mark.fault("S9", injected="a save that does not end by the next", lost="0")
def test_what_is_due_by_the_clock_waits_for_the_save_before(config, gate):
    run = built(replace(config, save=SaveConfig(0, every_minutes=1e-9)))
    set_step(run, 1)
    assert save_due(run)
    save(run)
    set_step(run, 2)
    assert not save_due(run)
    gate.set()
    run.saver.wait()
    assert save_due(run)
    run.close()


def slow_among_two(config, hang_seconds):
    """Rank 0 of two ranks before step 2, whose save of step 1 does not end."""
    run = built(replace(config, save=SaveConfig(1, 0)))
    run.learner.ranks = replace(run.ranks, world_size=2)
    run.progress.watch.hang_seconds = hang_seconds
    set_step(run, 1)
    save(run)
    set_step(run, 2)
    return run


@pytest.mark.fault("S9", injected="a save that takes longer than the other ranks wait", lost="0")
def test_the_other_ranks_never_wait_too_long_for_a_slow_save_and_it_is_said(config, gate, caplog):
    run = slow_among_two(config, hang_seconds=0.1)
    assert save_due(run)
    save(run)
    said = r"no checkpoint of step 2: that of step 1 has been in the making for \d+ s"
    assert re.search(said, caplog.text)
    assert "make saves rarer than --save.every 1, --save.keep-every 0" in caplog.text
    gate.set()
    run.close()
    assert steps_of(config) == [1]


def test_a_stop_waits_for_no_slow_save_and_says_nothing_for_the_last_one_comes(
    config, gate, caplog
):
    run = slow_among_two(config, hang_seconds=1000)
    threading.Timer(0.1, setattr, (run.stop, "wanted", True)).start()
    save(run)
    assert "no checkpoint" not in caplog.text
    gate.set()
    run.close()


def test_a_save_that_ends_in_time_is_waited_for(config, gate):
    run = slow_among_two(config, hang_seconds=1000)
    threading.Timer(0.1, gate.set).start()
    save(run)
    run.close()
    assert steps_of(config) == [1, 2]


def test_the_wait_stands_in_the_metrics_of_the_steps_that_saved(config):
    run_to_end(config)
    found = [x["step"] for x in lines(config.out) if "speed/save_stall_milliseconds" in x]
    assert found == [2, 4, 6]
    assert steps_of(config) == [2, 4, 6, 8]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.fault("S6", injected="EROFS, EIO, EDQUOT or ENOSPC in two saves", lost="0")
def test_a_failing_disk_is_told_and_training_goes_on(config, number, monkeypatch, caplog):
    failing(monkeypatch, OSError(number, "no luck"), steps=(4, 6))
    run = run_to_end(config)
    assert (run.step, steps_of(config)) == (8, [2, 8])
    assert caplog.text.count("no luck); training continues, the older ones are kept") == 2
    assert list(config.out.glob("checkpoints/.*partial*")) == []


@pytest.mark.fault("S6", injected="the checkpoints' folder vanishes in the run", lost="0")
def test_a_folder_that_vanishes_is_made_anew_at_the_next_save(config, monkeypatch, caplog):
    run = built(config)
    take = run.loader.next_step

    def vanishing():
        if run.step == 5:
            run.saver.wait()
            shutil.rmtree(config.out / "checkpoints")
        return take()

    run.loader.next_step = vanishing
    train(run)
    run.close()
    assert steps_of(config) == [6, 8]


@pytest.mark.fault("S10", injected="KeyError in the saving thread", lost="0")
def test_any_other_error_of_the_thread_is_told_too(config, monkeypatch, caplog):
    failing(monkeypatch, KeyError("a mistake of ours"), steps=(4,))
    run_to_end(config)
    assert "a mistake of ours" in caplog.text
    assert steps_of(config) == [2, 6, 8]


def test_a_last_save_that_fails_is_an_error_and_the_status_says_so(config, monkeypatch):
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), steps=(8,))
    with pytest.raises(OSError, match="No space left"):
        finish(built(config))
    status = RunFolder(config.out).read_status()
    assert (status["state"], status["step"]) == ("failed", 8)
    assert "No space left" in status["reason"]
    assert steps_of(config) == [2, 4, 6]


@pytest.mark.fault("S5", injected="10 bytes free", lost="0")
def test_too_little_room_is_seen_before_the_disk_is_filled(config, monkeypatch, caplog):
    usage = checkpoint_module.shutil.disk_usage(config.out.parent)
    run = built(config)
    monkeypatch.setattr(
        checkpoint_module.shutil, "disk_usage", lambda path: usage._replace(free=10)
    )
    set_step(run, 2)
    save(run)
    run.saver.wait()
    assert "0.00 GB free, 0.00 GB needed" in caplog.text
    assert list(config.out.glob("checkpoints/*")) == []
    run.close()


def test_at_any_limit_of_a_files_size_there_is_a_whole_checkpoint_or_none(config):
    run_to_end(replace(config, steps=4, save=SaveConfig(0, 0)))
    straight = steps_of(config)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = built(replace(config, allow=("steps",)))
    try:
        for step, limit in enumerate(range(0, 40_000, 4_000), start=5):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
            set_step(run, step)
            save(run)
            run.saver.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    run.close()
    assert steps_of(config) == straight
    assert list(config.out.glob("checkpoints/.*partial*")) == []


def test_the_best_by_validation_loss_is_written_and_kept(config):
    evals = EvalConfig(every=2, val_tokens=64, tasks_every=0, tasks=())
    config = replace(config, eval=evals, steps=8, save=SaveConfig(0, 0, keep=1, keep_best=1))
    run = run_to_end(config)
    measured = {
        x["step"]: x["val/loss"] for x in lines(config.out) if "val/loss" in x and x["step"]
    }
    assert steps_of(config) == sorted({min(measured, key=lambda s: measured[s]), run.step})


def test_every_nth_is_written_and_kept_for_good(config):
    run_to_end(replace(config, save=SaveConfig(0, 0, keep=1, keep_every=3, keep_best=0)))
    assert steps_of(config) == [3, 6, 8]


def test_what_a_killed_save_left_is_removed_at_the_next_start(config):
    run_to_end(replace(config, steps=4))
    left = config.out / "checkpoints" / ".step_000006.elsewhere.1.partial"
    left.mkdir()
    run_to_end(replace(config, allow=("steps",)))
    assert not left.exists()


def test_saving_leaves_training_untouched_by_a_bit(config, tmp_path):
    run_to_end(config)
    quiet = replace(config, out=tmp_path / "quiet", save=SaveConfig(0, 0))
    run_to_end(quiet)
    assert losses(config.out) == losses(quiet.out)


@pytest.fixture(autouse=True)
def hear(caplog):
    caplog.set_level(logging.INFO, "train")
