"""A run folder has one writer, and a damaged checkpoint is never used."""

import fcntl
import subprocess
import sys
import threading

import pytest

from storage.checkpoint_folder import verify_checkpoint
from storage.run_folder import RunFolder
from tests.storage.checkpoints import checkpoint


@pytest.mark.parametrize("fault", ["flip", "truncate", "remove", "no manifest"])
def test_the_newest_undamaged_checkpoint_is_used_and_a_damaged_one_renamed(tmp_path, fault):
    run = RunFolder(tmp_path)
    old, new = checkpoint(run, 10), checkpoint(run, 20)
    victim = new / ("MANIFEST.json" if fault == "no manifest" else "model.safetensors")
    if fault in ("remove", "no manifest"):
        victim.unlink()
    else:
        victim.write_text("weighty" if fault == "flip" else "wei")
    with pytest.raises(ValueError, match=r"damaged|not a complete checkpoint"):
        verify_checkpoint(new)
    assert run.recover_newest_checkpoint() == old
    assert (run.checkpoints / "step_000020.broken").is_dir()


def test_steps_beyond_six_digits_still_sort_by_number(tmp_path):
    run = RunFolder(tmp_path)
    checkpoint(run, 999_999)
    assert run.recover_newest_checkpoint() == run.checkpoint(999_999)
    assert run.recover_newest_checkpoint() != checkpoint(run, 1_000_000)
    assert run.recover_newest_checkpoint() == run.checkpoint(1_000_000)


@pytest.mark.fault("P13", injected="two writers of one folder", lost="0")
def test_a_second_writer_is_refused_with_the_holder_until_the_first_dies(tmp_path):
    code = (
        "import sys, pathlib; from storage.run_folder import RunFolder;"
        f"r = RunFolder(pathlib.Path({str(tmp_path)!r})); r.lock(); print('locked', flush=True);"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"being written by pid {holder.pid} on"):
            RunFolder(tmp_path).lock()
        holder.kill()
    run = RunFolder(tmp_path)
    run.lock()
    run.unlock()


def test_a_lock_names_the_batch_job_and_waits_while_a_watcher_tests_it(tmp_path):
    run, other = RunFolder(tmp_path), RunFolder(tmp_path)
    run.lock(job="4711")
    assert "pid" in (tmp_path / "lock").read_text()
    with pytest.raises(ValueError, match=r"being written by pid \d+ on \S+, job 4711; stop that"):
        other.lock()
    run.unlock()
    with (tmp_path / "lock").open() as glance:
        fcntl.flock(glance, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (glance, fcntl.LOCK_UN)).start()
        other.lock()
    other.unlock()
