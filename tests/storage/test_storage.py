"""Files and run folders are whole or absent, and a broken checkpoint is never used."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from storage.atomic import new_file, new_folder, read_json, write_json
from storage.checkpoint_folder import step_of, verify_checkpoint, write_manifest
from storage.digest import DigestCache, file_sha256, fingerprint
from storage.json_lines import truncate_metrics
from storage.retention import Retention
from storage.run_folder import RunFolder
from train.checkpoints.checkpoint import validation_loss_of


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), new_file(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_folder_never_appears(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "run") as aside:
        (aside / "file").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_folder_is_never_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / "run"):
        pass


def test_broken_json_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not readable JSON"):
        read_json(tmp_path / "a.json")


def test_json_that_would_fill_the_memory_is_refused_unread(tmp_path):
    path = tmp_path / "state.json"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # a hole takes no room on the disk
    with pytest.raises(
        ValueError, match=r"state\.json is 10737418240 bytes of JSON, but must be at"
    ):
        read_json(path)


@pytest.mark.parametrize("change", [{"format": 2}, {"format": None}])
def test_a_manifest_of_another_format_is_refused(tmp_path, change):
    folder = checkpoint(RunFolder(tmp_path), 3)
    write_json(folder / "MANIFEST.json", read_json(folder / "MANIFEST.json") | change)
    with pytest.raises(ValueError, match=r"MANIFEST\.json is of format .* update Ratchet"):
        verify_checkpoint(folder)


def test_a_fingerprint_ignores_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_digest_is_recomputed_only_when_the_file_changed(tmp_path):
    file = tmp_path / "shard"
    file.write_bytes(b"one")
    cache = DigestCache(tmp_path / "digests.json")
    first = cache.sha256(file)
    cache.known[file.name][3] = "remembered"
    assert cache.sha256(file) == "remembered"
    file.write_bytes(b"two!")
    assert cache.sha256(file) == file_sha256(file) != first


@pytest.mark.parametrize(
    "content", ["[]", "null", '{"shard": 5}', '{"shard": []}', '{"shard": [1, 2, 3, 4]}', "{"]
)
def test_a_damaged_memory_of_digests_only_costs_time(tmp_path, content):
    (tmp_path / "shard").write_bytes(b"one")
    (tmp_path / "digests.json").write_text(content)
    cache = DigestCache(tmp_path / "digests.json")
    assert cache.sha256(tmp_path / "shard") == file_sha256(tmp_path / "shard")


def checkpoint(run, step, content="weights"):
    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    write_manifest(folder)
    return folder


@pytest.mark.parametrize("fault", ["flip", "truncate", "remove", "no manifest"])
def test_the_newest_sound_checkpoint_is_used_and_the_broken_one_set_aside(tmp_path, fault):
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


def sweep(run, newest=1, every=0, best=0):
    Retention(newest, every, best, validation_loss_of).sweep(run)
    return [step_of(path) for path in reversed(run.all_checkpoints())]


def test_latest_follows_and_only_the_newest_are_kept(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        run.point_latest_at(checkpoint(run, step))
    assert sweep(run, newest=2) == [2, 3]
    assert (run.checkpoints / "latest").resolve() == run.checkpoint(3).resolve()


def test_every_nth_and_the_best_are_kept_for_good(tmp_path):
    run = RunFolder(tmp_path)
    for step, loss in ((4, 3.0), (5, 1.0), (7, 2.0), (8, 2.5), (9, 4.0)):
        results = {"step": step, "metrics": {"val/loss": loss}}
        write_json(checkpoint(run, step) / "results.json", results)
        write_manifest(run.checkpoint(step))
    assert sweep(run, newest=1, every=4, best=2) == [4, 5, 7, 8, 9]
    assert sweep(run, newest=1, every=8, best=1) == [5, 8, 9]


@pytest.mark.fault("S11", injected="2 of 3 checkpoints damaged before a sweep", lost="0")
def test_a_damaged_checkpoint_is_not_counted_and_the_only_good_one_stays(tmp_path, caplog):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        checkpoint(run, step)
    (run.checkpoint(2) / "model.safetensors").write_text("weighty")
    (run.checkpoint(3) / "MANIFEST.json").unlink()
    assert sweep(run, newest=1) == [1, 2, 3]
    assert "not counted among the checkpoints kept" in caplog.text


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


def test_a_lock_names_the_batch_job_too_and_outlives_a_watchers_glance(tmp_path):
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


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    run = RunFolder(tmp_path)
    run.lock()
    run.unlock()
    assert "see to it yourself that nothing is started twice there" in caplog.text


@pytest.mark.parametrize(
    "content",
    ['{"format": 1, "files": {"../secret": {"bytes": 1, "sha256": ""}}}', '{"fi1es": {}}', "[]"],
)
def test_a_manifest_that_is_none_or_points_elsewhere_is_refused(tmp_path, content):
    (tmp_path / "MANIFEST.json").write_text(content)
    with pytest.raises(ValueError, match=r"outside its folder|is not a manifest"):
        verify_checkpoint(tmp_path)


def test_metric_lines_past_the_resumed_step_and_a_torn_line_move_away(tmp_path):
    metrics, discarded = tmp_path / "metrics.jsonl", tmp_path / "gone.jsonl"
    lines = [json.dumps({"step": step}) for step in range(4)]
    metrics.write_text("\n".join(lines) + '\n{"step": 4, "tr')
    truncate_metrics(metrics, discarded, first_step=2)
    assert metrics.read_text().splitlines() == lines[:2]
    assert discarded.read_text().splitlines() == [*lines[2:], '{"step": 4, "tr']


def test_a_damaged_byte_among_the_metric_lines_moves_its_line_away(tmp_path):
    metrics, discarded = tmp_path / "metrics.jsonl", tmp_path / "gone.jsonl"
    metrics.write_bytes(b'{"step": 0, "a": "\xff"}\n{"step": 1\xff}\n{"step": 2}\n')
    assert truncate_metrics(metrics, discarded, first_step=3) == 2
    assert metrics.read_text() == '{"step": 2}\n'
    assert discarded.read_text() == '{"step": 0, "a": "\ufffd"}\n{"step": 1\ufffd}\n'
