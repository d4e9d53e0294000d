"""Scripts print, write and compute what tests/golden recorded, bit for bit.

`.venv/bin/python -m tests.golden.make` writes those files anew; tests/test_scripts.py has the
`--help` of every script, tests/test_formats.py the runs of every format.
"""

import json
import shutil

import pytest

from storage import exit_codes
from storage.checkpoint_folder import verify_checkpoint
from tests.golden import make

WRONG = make.wrong_commands()
EVERYWHERE = make.recorded_bits()[0]
"""Bits of one kind of machine, whose numbers hold to three digits on all."""


def golden(name):
    return json.loads((make.HERE / name).read_text())


@pytest.fixture(scope="module")
def recorded():
    """The bits of this kind of machine."""
    for bits in make.recorded_bits():
        if bits["machine"] == make.machine():
            return bits
    pytest.skip(f"no bits are recorded of {make.machine()}; python -m tests.golden.make bits")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Twenty steps of each recipe, on one rank and on two."""
    return {run: make.trained(tmp_path_factory.mktemp("run"), run) for run in make.RUNS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, a run, a checkpoint and inputs."""
    return make.furnished(tmp_path_factory.mktemp("all"))


@pytest.fixture(scope="module")
def evaluated(folder):
    return make.bits_of_evaluation(folder)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return make.prepared(tmp_path_factory.mktemp("one"), workers=1)


# --- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", make.RUNS)
def test_a_run_ends_at_the_recorded_weights_by_the_recorded_metrics(recorded, runs, run):
    if run not in recorded:
        pytest.skip(f"no bits of {run} are recorded of {make.machine()}")
    assert make.bits_of_run(runs[run]) == recorded[run]


@pytest.mark.parametrize("run", make.RUNS)
def test_on_any_machine_a_run_has_the_recorded_losses(runs, run):
    found, wanted = make.bits_of_run(runs[run]), EVERYWHERE[run]
    assert losses(found["metrics"]) == pytest.approx(losses(wanted["metrics"]), rel=1e-3)
    assert losses(found["evals"]) == pytest.approx(losses(wanted["evals"]), rel=1e-3)


def losses(lines):
    tags = ("train/loss", "val/loss", "val/bits_per_byte")
    return [line[tag] for line in lines for tag in tags if tag in line]


@pytest.mark.parametrize("run", make.RUNS)
def test_on_any_machine_a_run_reads_the_recorded_data(runs, run):
    found, wanted = make.bits_of_run(runs[run]), EVERYWHERE[run]
    assert exact(found["metrics"]) == exact(wanted["metrics"])


def exact(lines):
    """Digests and numbers that count something, and the names of all others."""
    return [{tag: None if type(v) is float else v for tag, v in line.items()} for line in lines]


# --- a checkpoint ------------------------------------------------------------------------------


def test_a_checkpoint_has_the_recorded_scores(recorded, evaluated):
    assert evaluated["numbers"] == recorded["evaluation"]["numbers"]


def test_a_checkpoint_says_the_recorded_texts(recorded, evaluated):
    assert evaluated["texts"] == recorded["evaluation"]["texts"]


def test_on_any_machine_a_checkpoint_has_the_recorded_validation_loss(evaluated):
    wanted = EVERYWHERE["evaluation"]["numbers"]
    assert losses([evaluated["numbers"]]) == pytest.approx(losses([wanted]), rel=1e-3)


# --- a run of the present format ---------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_of_the_present_format_verifies(step):
    verify_checkpoint(make.RUN / "checkpoints" / f"step_{step:06d}")


def test_evaluations_of_the_present_format_are_not_made_again(folder):
    before = (folder / "run" / "evals.jsonl").read_bytes()
    assert "evaluated 0 checkpoints" in make.checked(make.call(make.WATCH, folder)).stdout
    assert (folder / "run" / "evals.jsonl").read_bytes() == before


def test_a_lost_evaluation_is_made_again_to_three_digits(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "evals.jsonl").unlink()
    make.checked(make.call(make.WATCH, tmp_path))
    found, wanted = (make.json_lines(at / "run" / "evals.jsonl") for at in (tmp_path, folder))
    assert losses(found) == pytest.approx(losses(wanted), rel=1e-3)
    assert exact(found) == exact(wanted)


# --- data --------------------------------------------------------------------------------------


def test_a_data_set_has_the_recorded_files(data_set):
    assert make.file_digests(data_set) == golden("data_sets.json")


def test_three_workers_make_the_recorded_files_too(tmp_path):
    assert make.file_digests(make.prepared(tmp_path, workers=3)) == golden("data_sets.json")


def test_permutations_and_windows_are_those_recorded(tmp_path):
    assert make.order(tmp_path) == golden("order.json")


# --- what others read --------------------------------------------------------------------------


def test_files_and_their_keys_have_the_recorded_names(runs, data_set, folder, evaluated):
    assert make.keys(runs["ranks_1"], data_set, folder / "numbers.json") == golden("keys.json")


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_refused_in_the_recorded_words_and_leaves_nothing(folder, command):
    before = sorted(folder.iterdir())
    assert make.answer(command, folder) == WRONG[command]
    assert sorted(folder.iterdir()) == before


def test_every_wrong_command_ends_with_the_code_of_a_users_error():
    assert {text.splitlines()[1] for text in WRONG.values()} == {"exit code 2"}


def test_exit_codes_are_those_that_launchers_know():
    restarted = (exit_codes.FAILED_CODE, exit_codes.PEER_LOST_CODE)
    assert restarted == (1, 76)
    assert exit_codes.FOLDER_LOST_CODE == 73
    assert {2, 70, 73, 75, 130} == exit_codes.FINAL_CODES
