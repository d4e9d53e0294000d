"""A band is made of runs that differ in the seed only; of others it says what differs."""

import json

import pytest

from bench.band_alarms import main as count_alarms
from bench.make_band import band_of, measured_run
from bench.make_band import main as make_band
from tests.made_bands import STEPS, band_run
from train.guards.band.record import read_band


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Ten runs with the seeds 1 to 10."""
    folder = tmp_path_factory.mktemp("runs")
    return [band_run(folder / f"seed_{seed}", seed) for seed in range(1, 11)]


def call(script, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["script", *map(str, words)])
    script()


def test_ten_runs_make_a_band_that_says_which_recipe_it_is_of(runs, tmp_path, monkeypatch, caplog):
    out = tmp_path / "demo.json"
    call(make_band, monkeypatch, *runs, "--out", out)
    band = read_band(out)
    assert list(band.seeds) == list(range(1, 11))
    assert (band.name, band.command, band.steps) == ("demo", "python train/main.py demo", STEPS)
    assert band.recipe["optimizer.lr"] == 0.01
    assert not {"seed", "out", "micro_batch", "eval.every", "log.seconds"} & band.recipe.keys()
    spread = band.spread("val/loss", band.marks.index(50))
    assert spread is not None
    assert (spread.count, round(spread.mean, 1)) == (10, 3.7)


def test_further_runs_of_a_seed_show_the_rounding(runs, tmp_path):
    others = [band_run(tmp_path / name, 3, "preempted") for name in ("same", "moved")]
    lines = (others[1] / "metrics.jsonl").read_text().splitlines()
    moved = [json.loads(line) for line in lines]
    for line in moved[10:]:
        line["train/loss"] += 0.001
    (others[1] / "metrics.jsonl").write_text("\n".join(map(json.dumps, moved)) + "\n")
    band = band_of([measured_run(path) for path in [*runs, *others]], "demo", "")
    counts = dict(zip(band.marks, band.rounding_counts, strict=True))
    assert [counts[30], counts[60]] == [1, 0]  # the other one has the same bits
    found = dict(zip(band.marks, band.rounding["train/loss"], strict=True))
    assert [found[4], found[30], found[60]] == pytest.approx([0, 0.001, None])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer__lr": 0.5}, r"differ in more than the seed \(optimizer.lr: 0.01 -> 0.5\)"),
        ({"seed": 3, "state": "failed"}, None),
        ({"state": "failed"}, "is not finished, and there is no finished run of its seed"),
    ],
)
def test_another_recipe_or_an_unfinished_run_is_refused(runs, tmp_path, change, said):
    other = band_run(tmp_path / "other", **{"seed": 11} | change)
    measured = [measured_run(path) for path in [*runs, other]]
    if said is None:
        assert not band_of(measured, "demo", "").rounding
    else:
        with pytest.raises(ValueError, match=said):
            band_of(measured, "demo", "")


def test_nine_seeds_are_too_few(runs):
    with pytest.raises(ValueError, match="there are 9 seeds, and a band needs 10"):
        band_of([measured_run(path) for path in runs[:9]], "demo", "")


def test_a_name_that_is_no_preset_needs_the_command(runs, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        call(make_band, monkeypatch, *runs, "--out", tmp_path / "own.json")
    assert "own is no preset; give --made-by" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_alarms_of_a_band_are_counted(runs, tmp_path, monkeypatch, caplog):
    out = tmp_path / "demo.json"
    call(make_band, monkeypatch, *runs, "--out", out)
    wrong = band_run(tmp_path / "wrong_mask_leak", 99)
    lines = [json.loads(line) for line in (wrong / "metrics.jsonl").read_text().splitlines()]
    for line in lines[8:]:
        line["train/loss"] = 0.5
    (wrong / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    results = tmp_path / "result.json"
    call(count_alarms, monkeypatch, out, "--sound", *runs, "--mistaken", wrong, "--out", results)
    record = json.loads(results.read_text())
    assert [one["by_seeds"]["flagged"] for one in record["sound"].values()] == [False] * 10
    assert record["mistaken"]["mask_leak"]["by_seeds"]["first_mark"] == 10
    text = results.with_suffix(".md").read_text()
    assert "judged by the other seeds: 0 of 10 flagged" in text
    assert "| attention sees later tokens | not judged | step 10: train/loss -" in text
