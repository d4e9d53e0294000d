"""A checkpoint of another run is known by its identity, or else by what it was trained with."""

import json

import pytest

from storage.atomic import read_json, write_json
from storage.ownership.run_identity import identity_of, new_run_id
from storage.run_folder import RunFolder
from tests.storage.checkpoints import checkpoint

CONFIG = {"seed": 7, "context_length": 16, "model": {"n_layer": 1, "context_length": 16}}
RECORD = {"run_id": "0123456789abcdef", "config": CONFIG, "data_fingerprint": "d1"}
STATE = {"step": 4, "seed": 7, "context_length": 16, "data_fingerprint": "d1"}


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of step 4; its state can be changed by `change`."""
    path = checkpoint(RunFolder(tmp_path), 4)
    write_json(path / "state.json", STATE)
    write_json(path / "model.json", {"config": CONFIG["model"]})
    return path


def change(path, name="state.json", **changes):
    write_json(path / name, read_json(path / name) | changes)


def test_an_identity_is_sixteen_hexadecimal_digits_and_never_the_same():
    ids = {new_run_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in ids)


def test_a_checkpoint_of_an_older_version_is_compared_by_what_it_has(saved):
    assert identity_of(RECORD).difference(saved) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_id": "fedcba9876543210"}, "run_id fedcba9876543210, this run's is 0123456789abcdef"),
        ({"seed": 1337}, "seed 1337, this run's is 7"),
        ({"context_length": 32}, "context_length 32, this run's is 16"),
        ({"data_fingerprint": "d2"}, "data_fingerprint d2, this run's is d1"),
        ({"step": 3}, "its state is of step 3"),
        ({"step": None}, "its state is of step None"),
    ],
)
def test_what_differs_is_said(saved, changes, said):
    change(saved, **changes)
    assert identity_of(RECORD).difference(saved) == said
    own = {"run_id": RECORD["run_id"]} | changes
    change(saved, **own)
    assert identity_of(RECORD).difference(saved) == said


def test_another_network_is_another_run(saved):
    change(saved, "model.json", config={"n_layer": 2})
    assert identity_of(RECORD).difference(saved) == "n_layer 2, this run's is 1"


def test_a_run_without_an_identity_takes_checkpoints_that_have_one(saved):
    change(saved, run_id="fedcba9876543210")
    old = {key: value for key, value in RECORD.items() if key != "run_id"}
    assert identity_of(old).difference(saved) == ""


@pytest.mark.parametrize("record", [None, 5, [], {}, {"config": 3}, {"config": {"model": []}}])
def test_a_record_that_says_nothing_compares_the_step_alone(saved, record):
    assert identity_of(record).difference(saved) == ""
    change(saved, step=9)
    assert identity_of(record).difference(saved) != ""


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps(3), "\0"])
def test_a_damaged_state_shows_nothing_for_that_is_another_question(saved, text):
    (saved / "state.json").write_text(text)
    assert identity_of(RECORD).difference(saved) == ""


def test_foreign_checkpoints_do_not_count_and_are_named_once(saved, tmp_path, caplog):
    run = RunFolder(tmp_path)
    own = checkpoint(run, 2)
    write_json(own / "state.json", STATE | {"step": 2})
    run.identity = identity_of(RECORD)
    change(saved, seed=1337)
    assert run.all_checkpoints() == [own]
    assert run.all_checkpoints() == [own]
    assert caplog.text.count("step_000004 is not a checkpoint of this run (seed 1337, ") == 1
    change(saved, seed=7)
    assert run.all_checkpoints() == [saved, own]


def test_a_reader_who_knows_no_run_sees_all(saved, tmp_path):
    change(saved, seed=1337)
    assert RunFolder(tmp_path).all_checkpoints() == [saved]
