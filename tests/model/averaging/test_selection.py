"""Which checkpoints an average takes, and which it refuses."""

import shutil

import pytest

from model.averaging.selection import checkpoints_named, read_members
from storage.atomic import put_json, read_json
from storage.checkpoint_folder import step_of, write_manifest
from tests.damage import ANY_FILE
from tests.eval_subjects import tiny_checkpoint

SHAPE = {"vocab_size": 64}


@pytest.fixture
def run(tmp_path):
    """The folder of a run with four checkpoints."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (5, 10, 20, 15):
        new_checkpoint(folder / f"step_{step:06d}", step)
    (folder / "latest").symlink_to("step_000020")
    return folder.parent


def new_checkpoint(path, step, **other):
    """A checkpoint of a run with weights of its own."""
    state = {"step": step, "run_id": "a", "seed": 1, "context_length": 48} | other
    shape = {"seed": step} | SHAPE | state.pop("shape", {})
    return tiny_checkpoint(path, shape=shape, **state)


def steps(run, last=None, first_step=None):
    return [step_of(path) for path in checkpoints_named([run], last, first_step)]


def test_the_newest_of_a_run_are_taken_or_those_from_a_step_on(run):
    assert steps(run) == steps(run / "checkpoints") == [20, 15, 10, 5]
    assert steps(run, last=2) == [20, 15]
    assert steps(run, first_step=10) == [20, 15, 10]
    assert steps(run, last=2, first_step=5) == [20, 15]


def test_members_are_in_the_order_of_their_steps_however_they_were_named(run):
    folder = run / "checkpoints"
    named = [folder / "latest", folder / "step_000005", folder / "step_000015"]
    found = read_members(checkpoints_named(named, None, None), other_runs=False)
    assert [member.step for member in found] == [5, 15, 20]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"last": 9}, "--last 9 is more than the 4 checkpoints of .*run; give fewer, or train"),
        ({"first_step": 21}, "has no checkpoint from step 21 on; its newest is step_000020"),
        ({"last": 3, "first_step": 12}, "more than the 2 checkpoints of .* from step 12 on"),
    ],
)
def test_more_than_a_run_has_is_refused(run, words, error):
    with pytest.raises(ValueError, match=error):
        steps(run, **words)


def test_a_run_among_checkpoints_and_a_choice_among_named_ones_are_refused(run):
    one = run / "checkpoints" / "step_000005"
    with pytest.raises(ValueError, match="is the folder of a run; name it alone"):
        checkpoints_named([run, one], None, None)
    with pytest.raises(ValueError, match="give one run's folder, or omit them"):
        checkpoints_named([one, one], 2, None)


def refusal(paths, other_runs=False):
    with pytest.raises(ValueError, match=".") as caught:
        read_members(paths, other_runs)
    return str(caught.value)


def test_one_checkpoint_and_one_that_is_named_twice_are_refused(run, tmp_path):
    one = run / "checkpoints" / "step_000005"
    assert "needs two checkpoints or more, and this is 1, " in refusal([one])
    assert "step_000005 is named twice" in refusal([one, one])
    copy = shutil.copytree(one, tmp_path / "copy")
    assert f"copy has the weights of {one}" in refusal([one, copy], other_runs=True)


def test_a_damaged_checkpoint_is_refused_by_name(run):
    paths = checkpoints_named([run], None, None)
    next(d for d in ANY_FILE if "flipped" in d.name).do(paths[1] / "model.safetensors")
    assert "step_000015/model.safetensors differs from its digest" in refusal(paths)


@pytest.mark.parametrize("other", [{"run_id": "b"}, {"run_id": "", "seed": 2}])
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(run, tmp_path, other):
    foreign = new_checkpoint(tmp_path / "step_000030", 30, **other)
    paths = [run / "checkpoints" / "step_000005", foreign]
    value = "run_id b, this run's is a" if other["run_id"] else "seed 2, this run's is 1"
    assert f"is not of the same run as {paths[0]} ({value}); give" in refusal(paths)
    assert [member.step for member in read_members(paths, other_runs=True)] == [5, 30]


def test_other_runs_need_the_same_shape_and_tokenizer(run, tmp_path):
    own = run / "checkpoints" / "step_000005"
    deeper = new_checkpoint(tmp_path / "step_000030", 30, shape={"n_layer": 3})
    assert "step_000030 has n_layer 3, but" in refusal([own, deeper], other_runs=True)
    other = new_checkpoint(tmp_path / "step_000040", 40)
    put_json(other / "tokenizer" / "tokenizer.json", read_json(other / "state.json"))
    write_manifest(other)
    assert "has another tokenizer than" in refusal([own, other], other_runs=True)


def test_an_average_has_no_run_and_is_averaged_again_only_if_asked(run, tmp_path):
    average = new_checkpoint(tmp_path / "average", 30)
    (average / "state.json").rename(average / "average.json")
    write_manifest(average)
    paths = [run / "checkpoints" / "step_000005", average]
    assert "average is itself an average; give checkpoints of one run, or" in refusal(paths)
    assert [member.step for member in read_members(paths, other_runs=True)] == [5, None]
