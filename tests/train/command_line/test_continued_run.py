"""`--continue RUN`: the run's settings are the defaults, and what is no run is named."""

import json
import shutil

import pytest

from tests.golden.make import CHECKPOINT, DATA
from tests.runs import GOLDEN, alone
from train.command_line.parse import parse
from train.preflight.inputs import check_inputs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The present folder, which has a run, a data set, a checkpoint and an empty folder."""
    shutil.copytree(GOLDEN / "run", tmp_path / "runs" / "small", symlinks=True)
    shutil.copytree(DATA, tmp_path / "data")
    shutil.copytree(CHECKPOINT, tmp_path / "imported")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "named", ["", "/", "/checkpoints", "/checkpoints/latest", "/checkpoints/step_000008"]
)
def test_a_run_continues_with_its_settings_and_flags_change_them(folder, named):
    config = parse(["--continue", f"runs/small{named}", "--steps=20"])
    same = parse(["--out", "runs/small", "--steps", "20"])
    assert config == same
    assert (str(config.out), config.steps, config.optimizer.lr) == ("runs/small", 20, 0.01)


def test_a_run_is_also_named_by_its_record_or_from_within(folder, monkeypatch):
    assert parse(["--continue=runs/small/config.json"]).model.n_embd == 8
    monkeypatch.chdir("runs/small/checkpoints")
    assert parse(["--continue", "latest"]).out.samefile(folder / "runs" / "small")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere names no folder; give the folder of a run, such as runs/small"),
        (["runs/smal"], "runs/smal names no folder; give the folder of a run, such as runs/small"),
        (["data"], "data is a data set, not a run; give .* or begin a run with --data data"),
        (["empty"], r"empty holds no run yet \(no config\.json\); give .*, such as runs/small"),
        (["imported"], "imported is a checkpoint in no run's folder; give --init imported"),
        (["data/manifest.json"], "data/manifest.json is a file, not the folder of a run"),
        (["runs/small", "demo"], "and demo is a preset; give one of the two"),
        (["runs/small", "--out", "b"], "not in --out b; omit --out, or give --branch runs/small/"),
        (["runs/small", "--branch", "b"], "and --branch begins another run; give one of the two"),
        ([""], "--continue has no value; give the folder of a run"),
        (["a", "--continue", "b"], "--continue is given as a and as b; give it once"),
    ],
)
def test_what_cannot_be_continued_is_one_sentence(folder, words, said):
    with pytest.raises(ValueError, match=said):
        parse(["--continue", *words])


def test_checkpoints_without_a_record_may_begin_another_run(folder):
    (folder / "runs/small/config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json; put its .* --init runs/small/checkpo"):
        parse(["--continue", "runs/small"])


@pytest.mark.parametrize(
    "words",
    [
        ["--steps", "20"],
        ["--optimizer.lr", "0.5", "--skip-windows", "3:4", "7:9"],
        ["--steps=None"],
    ],
)
def test_the_command_that_an_error_proposes_works(folder, words):
    ranks = alone()
    with pytest.raises(ValueError, match="holds a run with another configuration") as refused:
        check_inputs(parse(["--continue", "runs/small", "--save.keep=5", *words]), ranks)
    proposed = str(refused.value).split("`")[1].split()
    assert proposed[:3] == ["train/main.py", "--continue", "runs/small"]
    config = parse(proposed[1:])
    assert config.save.keep == 5
    assert {change.key for change in check_inputs(config, ranks).changes} >= {*config.allow}


def test_a_run_and_a_preset_in_its_folder_are_told_how_to_continue(folder):
    with pytest.raises(ValueError, match="`train/main.py --continue runs/small` takes all settin"):
        check_inputs(parse(["gpt2-demo", "--data=data", "--out=runs/small"]), alone())


def test_data_that_were_moved_are_to_be_given(folder):
    (folder / "data").rename(folder / "moved")
    with pytest.raises(ValueError, match="no data set at data, .* the run in runs/small .* --data"):
        check_inputs(parse(["--continue", "runs/small"]), alone())
    assert check_inputs(parse(["--continue", "runs/small", "--data=moved"]), alone()).steps == 8


def test_a_run_of_a_newer_version_is_named_with_what_it_knows(folder):
    path = folder / "runs/small/config.json"
    record = json.loads(path.read_text())
    record["config"]["eval"]["later"] = 1
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="does not know: eval.later; if a newer version wrote it"):
        parse(["--continue", "runs/small"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("runs/small", "is the folder of a run, not a preset; give --continue runs/small"),
        ("my.toml", "is no preset; give --config my.toml to take settings from a file"),
    ],
)
def test_a_run_or_a_file_in_place_of_a_preset_is_told_its_flag(folder, word, said):
    with pytest.raises(ValueError, match=f"{word} {said}"):
        parse([word])


def test_the_flag_of_other_trainers_is_told_ours(folder):
    with pytest.raises(ValueError, match="no option --resume; --continue RUN continues a run"):
        parse(["--resume", "runs/small"])
