"""Runs side by side: table, differences, groups, picture and files."""

import csv
import json
import re

import pytest
from PIL import Image

from tests.damage import call, files_below
from tests.launching import ENVIRONMENT, fresh_python
from tests.made_runs import copied_run, made_run
from train.compare_runs import main


def rates(folder):
    """Three runs that differ in their learning rate; 0.02 is the best."""
    for rate, floor in ((0.01, 3.2), (0.02, 3.0), (0.03, 3.1)):
        made_run(folder / "runs" / f"lr_{rate}", floor=floor, settings={"optimizer.lr": rate})
    return folder


def table(text):
    """The first block: its rows by name, each as a dictionary by heading."""
    lines = next(b for b in text.split("\n\n") if b.startswith("run ")).splitlines()
    heads, *rows = (re.split(r" {2,}", line) for line in lines)
    return {row[0]: dict(zip(heads, row, strict=True)) for row in rows}


def test_the_best_run_is_first_and_what_all_share_is_one_sentence(tmp_path):
    done = call(main, [], rates(tmp_path))
    assert (done.code, done.err) == (0, "")
    rows = table(done.out)
    assert list(rows) == ["lr_0.02", "lr_0.03", "lr_0.01"]
    assert rows["lr_0.02"]["rate"] == "0.02"
    assert rows["lr_0.02"]["best val"] == f"{3 + 4 / 41:.4f}"
    assert "in all 3 runs: state finished, steps 40, tokens 5.12k, parameters 4.09k" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert "other settings" not in done.out


def test_a_failed_and_a_damaged_run_and_what_is_no_run_are_named(tmp_path):
    folder = rates(tmp_path) / "runs"
    (folder / "lr_0.01" / "config.json").write_text("{")
    (folder / "lr_0.03" / "status.json").write_text(
        '{"state": "failed", "step": 17, "reason": "the disk is full"}'
    )
    (folder / "a.png").write_text("no run")
    done = call(main, [*map(str, sorted(folder.iterdir())), "runs/lr_0.02"], tmp_path)
    assert done.code == 0
    assert list(table(done.out)) == ["lr_0.02", "lr_0.03"]
    assert "lr_0.03 failed: the disk is full" in done.out
    assert f"passed over: {folder / 'a.png'} is no run" in done.out
    assert f"left out: {folder / 'lr_0.01'} (" in done.out


@pytest.mark.parametrize("words", [["nowhere"], ["."], ["runs"], ["runs/*", "a.png"]])
def test_without_a_run_it_is_one_sentence(tmp_path, words):
    done = call(main, words, tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {', '.join(words)}: no run is there; give run folders")


def test_losses_on_other_validation_tokens_are_not_ranked_against_each_other(tmp_path):
    folder = rates(tmp_path)
    settings = {"optimizer.lr": 0.05, "data": "other"}
    made_run(folder / "runs" / "b", floor=1.0, settings=settings, data_fingerprint="0" * 64)
    done = call(main, ["--plot", "p.png"], folder)
    rows = table(done.out)
    assert [rows[name]["val"] for name in ("b", "lr_0.02", "lr_0.01")] == ["A", "B", "B"]
    assert "(A: 64 tokens of other; B: 64 tokens of" in done.out
    assert (folder / "p.png").exists()


def test_other_settings_that_differ_have_a_row_each(tmp_path):
    copied_run(tmp_path / "runs" / "old", 1)
    other = {"model.mlp": "relu2", "eval.every": 4, "schedule.warmup_steps": 0.5}
    made_run(tmp_path / "runs" / "new", steps=8, settings=other)
    rows = [line.split() for line in call(main, [], tmp_path).out.splitlines()]
    assert ["other", "settings", "that", "differ", "new", "old"] in rows
    assert ["model.mlp", "relu2", "gelu"] in rows
    assert ["schedule.warmup_steps", "0.5", "2"] in rows
    assert not any(row and row[0] in ("out", "guard.every", "optimizer.name") for row in rows)


def test_seeds_of_the_same_settings_are_a_group(tmp_path):
    for seed, floor in enumerate((3.0, 3.2)):
        for rate in (0.01, 0.02):
            settings = {"optimizer.lr": rate, "seed": seed, "save.every": seed}
            made_run(tmp_path / "runs" / f"{rate}_{seed}", floor=floor, settings=settings)
    done = call(main, ["--group", "--json", "runs.json"], tmp_path)
    groups = json.loads((tmp_path / "runs.json").read_text())["groups"]
    assert [(group["settings"], len(group["runs"])) for group in groups] == [
        ({"optimizer.lr": "0.01"}, 2),
        ({"optimizer.lr": "0.02"}, 2),
    ]
    assert groups[0]["means"]["best val"] == pytest.approx(3.1 + 4 / 41)
    assert groups[0]["deviations"]["best val"] == pytest.approx(0.2 / 2**0.5)
    assert "3.1976 ± 0.1414" in done.out


def test_other_changes_of_weights_are_another_group_and_mixtures_are_shown_by_their_names(tmp_path):
    for number, weights in enumerate((["5", "1", "1"], ["5", "1", "3"])):
        settings = {"data_weights_at": weights, "data": [f"/far/away/a:{number}", "/far/b:1"]}
        record = {"data_fingerprint": str(number)}
        made_run(tmp_path / f"runs/{number}", settings=settings, **record)
    done = call(main, ["--group", "--json", "-"], tmp_path)
    assert len(json.loads(done.out)["groups"]) == 2
    assert "a:0 b:1" in call(main, [], tmp_path).out


def test_json_and_csv_hold_every_figure_unrounded(tmp_path):
    rates(tmp_path)
    done = call(main, ["--json", "-", "--csv", "runs.csv"], tmp_path)
    report = json.loads(done.out)
    assert "lr_0.02" in done.err
    assert report["runs"][0]["best_val_loss"] == 3 + 4 / 41
    assert report["differences"] == {"optimizer.lr": [0.02, 0.03, 0.01]}
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["best_val_loss"]) == 3 + 4 / 41
    assert rows[0]["learning_rate"] == "0.02"
    assert call(main, ["--csv", "-"], tmp_path).out == (tmp_path / "runs.csv").read_text()


def test_the_picture_shows_each_run_in_both_panels_and_its_end(tmp_path):
    made_run(rates(tmp_path) / "runs" / "another", settings={"optimizer.lr": 0.04})
    done = call(main, ["--plot", "p.png"], tmp_path)
    assert "drawn: p.png" in done.out
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width == 1440
    assert call(main, ["--plot", "p.svg"], tmp_path).code == 0
    text = (tmp_path / "p.svg").read_text()
    assert text.count("<!-- lr_0.02 -->") == text.count("<!-- another: lr 0.04 -->") == 1
    assert text.count("<!-- tokens trained on -->") == 1
    assert text.count("<!-- time of training steps (seconds) -->") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--plot", "a.gif"], "--plot a.gif is no picture; give a name that ends in .png, .svg"),
        (["--csv", "-", "--json", "-"], "--csv - and --json - both want standard output"),
        (["--csv", "runs"], "--csv runs is a folder; give the name of a file"),
        (["--sort", "size"], "--sort size is not"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path, words, sentence):
    done = call(main, words, rates(tmp_path))
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err


def test_no_run_is_changed(tmp_path):
    rates(tmp_path)
    before = files_below(tmp_path)
    call(main, ["--all", "--group"], tmp_path)
    assert files_below(tmp_path) == before


def test_names_of_any_characters_are_shown_on_any_terminal(tmp_path, monkeypatch):
    for seed, name in enumerate(("a$x^2$\x1b[31m", "ünï_漢", "long_" * 20)):
        made_run(tmp_path / "runs" / name, settings={"seed": seed, "model.mlp": f"kind{seed}"})
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", "ascii")
    done = fresh_python("train/compare_runs.py", str(tmp_path / "runs"), "--group")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert r"\xfcn\xef_\u6f22" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 90
