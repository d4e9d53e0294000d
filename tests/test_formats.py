"""A run that an older version wrote goes on in this one, and so does one of its own format."""

import json
import shutil

import pytest

from storage.checkpoint_folder import write_manifest
from storage.retention import SaveConfig
from tests.runs import GOLDEN, NANO, built, losses, nano_config, run_to_end
from train.checkpoints.run_position import STATE_FORMAT, load_position


def test_there_is_a_golden_run_of_every_format():
    assert [path.name for path in sorted(GOLDEN.parent.glob("format_*"))] == [
        f"format_{number}" for number in range(1, STATE_FORMAT + 1)
    ]


@pytest.mark.fault("R5", injected="a run of each older format", lost="0")
@pytest.mark.parametrize("number", range(1, STATE_FORMAT))
def test_a_run_of_an_older_format_is_resumed_and_ends_as_it_did(tmp_path, number):
    check_resumed(tmp_path, number)


def test_a_run_of_the_present_format_is_resumed_and_ends_as_it_did(tmp_path):
    check_resumed(tmp_path, STATE_FORMAT)


def check_resumed(tmp_path, number):
    """The golden run goes on from step 4 to the losses that it had."""
    shutil.copytree(GOLDEN.parent / f"format_{number}" / "run", tmp_path / "run")
    straight = losses(tmp_path / "run")
    config = nano_config(tmp_path, model=NANO, save=SaveConfig(4, 0, 9))
    run = run_to_end(config)
    assert run.saver.saved_step == 8
    assert losses(tmp_path / "run") == pytest.approx(straight, rel=1e-4)
    *_, start = (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    assert json.loads(start)["started_at_step"] == 4


@pytest.mark.parametrize("change", [{"format": STATE_FORMAT + 1}, {"format": None}, {"depth": 3}])
def test_a_state_that_this_version_does_not_know_is_refused_in_one_sentence(tmp_path, change):
    checkpoint = tmp_path / "step_000004"
    shutil.copytree(GOLDEN / "run" / "checkpoints" / "step_000004", checkpoint)
    state = json.loads((checkpoint / "state.json").read_text()) | change
    (checkpoint / "state.json").write_text(json.dumps(state))
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match=r"state\.json (is of format|is damaged)"):
        load_position(checkpoint)


@pytest.mark.fault("R5", injected="a checkpoint of a newer format")
def test_a_newer_checkpoint_is_never_passed_over_for_an_older_one(tmp_path):
    config = nano_config(tmp_path, save=SaveConfig(4, 0, 9))
    run_to_end(config)
    newest = config.out / "checkpoints" / "step_000008"
    state = json.loads((newest / "state.json").read_text()) | {"format": STATE_FORMAT + 1}
    (newest / "state.json").write_text(json.dumps(state))
    write_manifest(newest)
    with pytest.raises(ValueError, match="update Ratchet"):
        built(config)
    assert newest.is_dir()
