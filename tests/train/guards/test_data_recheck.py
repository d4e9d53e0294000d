"""Damaged data end a run on all ranks without a save, and the steps in doubt are named."""

import json
import logging
import time
from datetime import UTC, datetime

import pytest

from data_prep.audit.run_proof import prove_run
from data_prep.audit.run_record import read_run
from data_prep.dataset.recheck import Damage
from data_prep.dataset.shards import check_data_set, open_data_set
from data_prep.order.training_data import open_training_data
from parallel.ranks import Ranks
from storage.exit_codes import GAVE_UP_CODE
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.launching import together
from tests.runs import alone, built, flags, lines, nano_config
from train.config import Config
from train.guards.data_recheck import DataRecheck, data_recheck
from train.recovery.ending import finish


def damage_shard(folder):
    """Change most tokens of the first shard; returns its path and what it was."""
    path = folder / "train_000000.npy"
    before = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(-6000, 2)
        file.write(bytes(6000))
    return path, before


class FoundDamage:
    """A reader that found damage at once."""

    def __init__(self, path, right_at=0.0):
        self.folder = path.parent
        self.damage = Damage(path, f"{path} is damaged", right_at)

    def start(self):
        """Nothing."""

    def close(self):
        """Nothing."""


@pytest.mark.fault("D10", injected="bytes of a shard while two ranks train on it", lost="interval")
def test_a_shard_damaged_while_two_ranks_train_ends_the_run_with_one_sentence(tmp_path, caplog):
    config = nano_config(tmp_path, steps=100_000, save=SaveConfig(0, 0, 99))
    path, before = damage_shard(config.data[0])
    more = ("--data-check", "size", "--data-recheck-hours", "1e-5", "--rehearsal", "False")
    done = together(2, *flags(config, *more))
    assert done.returncode not in (0, 75)
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed
    assert printed.count(f"{path} has sha256") == 1
    status = json.loads((config.out / "status.json").read_text())
    assert status["state"] == "failed"
    assert f"{path} has sha256" in status["reason"]
    assert "Steps 0 to" in status["reason"]
    assert RunFolder(config.out).all_checkpoints() == []
    # The next start hashes the file again. Once it is right, the proof names the steps.
    with pytest.raises(ValueError, match=r"train_000000\.npy has sha256"):
        check_data_set(open_data_set(config.data[0]), "cached")
    path.write_bytes(before)
    caplog.set_level(logging.INFO)
    assert not prove_run(open_training_data((config.data[0],)), read_run(config.out), None, 1)
    assert "DIFFERS  step" in caplog.text


def test_damage_found_just_before_the_end_is_not_blessed_by_a_last_checkpoint(tmp_path, caplog):
    run = built(nano_config(tmp_path, steps=3))
    found = FoundDamage(run.data.sources[0].data.folder / "train_000000.npy")
    step = run.learner.step

    def last_step(*arguments):
        if run.step == 2:
            run.recheck.close()
            run.recheck.readers = [found]
        return step(*arguments)

    run.learner.step = last_step
    assert finish(run) == GAVE_UP_CODE
    assert len(lines(run.folder.path)) == 3
    assert run.folder.all_checkpoints() == []
    assert run.folder.read_status()["state"] == "failed"
    assert "Steps 0 to 3 may have had other tokens" in caplog.text


def test_damage_asks_for_a_stop_and_a_stop_for_another_reason_keeps_its_reason(tmp_path):
    run = built(nano_config(tmp_path))
    run.recheck.readers = [FoundDamage(run.data.sources[0].data.folder / "x")]
    run.heartbeat()
    assert (run.stop.wanted, run.stop.reason) == (True, "damaged training data")
    run.stop.reason = "SIGTERM"
    run.heartbeat()
    assert run.stop.reason == "SIGTERM"
    run.close()


def test_an_undamaged_data_set_is_read_beside_a_run_and_the_thread_ends_with_it(tmp_path):
    config = nano_config(tmp_path, steps=3, data_recheck_hours=1e-6)
    run = built(config)
    (reader,) = run.recheck.readers
    step = run.learner.step

    def after_a_round(*arguments):
        while reader.files_read < 6:
            time.sleep(0.002)
        return step(*arguments)

    run.learner.step = after_a_round
    assert finish(run) == 0
    assert not reader._thread.is_alive()
    assert reader.damage is None
    assert reader.cpu_seconds > 0


@pytest.mark.parametrize(
    ("ranks", "hours", "reads"),
    [
        (Ranks(0, 4, 0, 2, alone().device), 24, True),
        (Ranks(1, 4, 1, 2, alone().device), 24, False),
        (Ranks(2, 4, 0, 2, alone().device), 24, True),  # the first of the second machine
        (Ranks(0, 1, 0, 1, alone().device), 0, False),
    ],
)
def test_one_process_of_each_machine_reads_the_data(tmp_path, ranks, hours, reads):
    data = open_training_data(nano_config(tmp_path).data)
    found = data_recheck(data, data.stream(1), ranks, hours, all_hashed=False)
    assert bool(found.readers) == reads
    found.start()
    found.close()


def test_the_staged_copy_is_what_is_read(tmp_path):
    config = nano_config(tmp_path, stage=tmp_path / "stage")
    run = built(config)
    assert {file.path.parent.parent for file in run.recheck.readers[0]._files} == {
        tmp_path / "stage"
    }
    run.close()


@pytest.mark.parametrize(
    ("right_at", "first"),
    [
        (0, 0),  # never
        (150, 10),  # before this process, by the starts of the run
        (250, 10),  # a later start went back to step 10
        (350, 30),
        (450, 40),  # by this process's own notes
        (650, 60),
    ],
)
def test_the_first_step_that_may_be_affected_follows_from_when_the_file_was_right(
    tmp_path, right_at, first
):
    times = {100: 10, 200: 20, 220: 10, 300: 30}
    starts = (
        {"time": datetime.fromtimestamp(at, UTC).isoformat(), "started_at_step": step}
        for at, step in times.items()
    )
    text = '{"time": 3}\n[]\n' + "".join(json.dumps(line) + "\n" for line in starts)
    (tmp_path / "starts.jsonl").write_text(text)
    recheck = DataRecheck([FoundDamage(tmp_path / "x.npy", right_at)])
    recheck._notes = [(400, 40), (500, 50), (600, 60)]
    assert f"Steps {first} to 77 may" in recheck.sentence(77, RunFolder(tmp_path))


def test_a_step_is_noted_once_a_minute(tmp_path):
    recheck = DataRecheck()
    for step in range(5):
        recheck.note(step)
    assert len(recheck._notes) == 1
    assert recheck.sentence(5, RunFolder(tmp_path)) == ""


@pytest.mark.parametrize("hours", [-1, float("nan"), float("inf")])
def test_an_impossible_time_is_refused(hours):
    with pytest.raises(ValueError, match=f"data_recheck_hours={hours}"):
        Config(data_recheck_hours=hours)
