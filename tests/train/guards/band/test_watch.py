"""A run in progress: lines in its log and keys in its metrics at marks, and never a failure."""

import json
import logging
from dataclasses import replace

import pytest

from storage.json_lines import read_metrics
from tests.made_bands import MADE, RECIPE, STEPS, made_band, made_lines
from tests.runs import built, nano_config
from train.checkpoints.run_facts import run_facts
from train.guards.band.area import band_areas
from train.guards.band.judgement import BandJudge
from train.guards.band.marks import FIGURES, digest_at, figures_at, marked_steps
from train.guards.band.recipe import RunFacts, find_band
from train.guards.band.record import Band, SeedCurve, write_band
from train.guards.band.watch import BandWatch, band_watch
from train.guards.spikes import GuardConfig
from train.loop import train

FACTS = RunFacts(RECIPE, 99, STEPS, "a" * 64, 1024, MADE)


def watch_of(lines, seed=99, band=None):
    watch = BandWatch(BandJudge(band or made_band(), seed, MADE), 1024)
    return watch, {line["step"]: watch.compare(line["step"], line) for line in lines}


def test_marks_have_keys_and_six_of_them_a_line(caplog):
    caplog.set_level(logging.INFO)
    watch, added = watch_of(made_lines(99))
    marks = made_band().marks
    assert [step for step, keys in added.items() if keys] == list(marks)
    assert set(added[30]) == {"band/loss_z", "band/grad_norm_z", "band/val_loss_z", "band/outside"}
    assert len(caplog.messages) == 6
    assert max(map(len, caplog.messages)) <= 80
    assert caplog.messages[0].startswith("step 10 in band made: loss +0.5 sd, log norm ")
    assert watch.rows() == [("band", "within the band made of 10 seeds at all 15 marks")]


def test_a_mistake_is_said_at_once_and_then_at_the_shown_marks_only(caplog):
    watch, added = watch_of(made_lines(99, above=0.5))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    said = [message.split(":")[0] for message in warnings]
    assert said == [f"outside the band made at step {step}" for step in (20, 30, 50, 70, 100)]
    assert added[20]["band/outside"] == 1
    assert watch.rows()[0][1].startswith("outside the band made of 10 seeds at 9 of 15 marks: ")


def test_after_a_resume_no_mark_is_said_twice(caplog):
    caplog.set_level(logging.INFO)
    lines = made_lines(99, above=0.5)
    whole, added = watch_of(lines)
    caplog.clear()
    second = BandWatch(BandJudge(made_band(), 99, MADE), 1024)
    second.replay(lines[:45])
    again = {line["step"]: second.compare(line["step"], line) for line in lines[45:]}
    assert again == {step: added[step] for step in again}
    assert [message.split(":")[0][-3:] for message in caplog.messages] == [" 50", " 70", "100"]
    assert second.rows() == whole.rows()


def test_other_validation_tokens_are_not_compared():
    watch = BandWatch(BandJudge(made_band(), 99, MADE), 512)
    assert "band/val_loss_z" not in watch.compare(0, {"val/loss": 99.0})


def test_a_failure_is_said_once_and_ends_only_the_comparison(caplog):
    broken = replace(made_band(), seeds={1: SeedCurve({}, [])})
    watch, added = watch_of(made_lines(99), band=broken)
    assert not any(added.values())
    assert watch.rows() == []
    assert watch.band is None
    assert len(caplog.messages) == 1
    assert "training continues" in caplog.messages[0]


def test_a_band_of_another_recipe_is_said_and_not_used(tmp_path, caplog):
    path = tmp_path / "made.json"
    write_band(path, made_band())
    assert find_band(path, FACTS) is not None
    assert not caplog.messages
    other = replace(FACTS, recipe=RECIPE | {"optimizer.lr": 0.02}, steps=50)
    assert find_band(path, other) is None
    assert "(optimizer.lr: 0.012 -> 0.02; steps: 100 -> 50) and is not used" in caplog.messages[0]
    caplog.clear()
    assert find_band(path, replace(FACTS, data_fingerprint="b" * 64)) is None
    assert "data set: aaaaaaaaaaaaaaaa -> bbbbbbbbbbbbbbbb" in caplog.messages[0]


def test_off_and_a_recipe_that_no_shipped_band_has_give_none(caplog):
    assert find_band("off", FACTS) is None
    assert find_band("auto", FACTS) is None
    assert not caplog.messages


def test_a_file_that_vanished_since_the_start_ends_nothing(tmp_path, caplog):
    watch = band_watch(tmp_path / "gone.json", FACTS, tmp_path / "metrics.jsonl")
    assert watch.band is None
    assert "there is no band" in caplog.messages[0]


def test_the_areas_of_a_picture_hold_the_mean_of_the_seeds():
    band = made_band()
    training, validation = band_areas(band, 10)
    assert [len(training.points), len(validation.points)] == [14, 11]
    tokens, low, high = validation.points[3]
    spread = band.spread("val/loss", band.marks.index(30))
    assert tokens == 300
    assert spread
    assert low < spread.mean < high
    assert training.label == "training, means of 50 steps: 95% of sound runs (10 seeds)"
    assert band_areas(None, 10) == []


def band_of_run(record: dict, lines: dict) -> Band:
    """A band of ten seeds, all of which did what this run did, but for a little."""
    facts, marks = run_facts(record), marked_steps(8)
    rows = [figures_at(mark, lines) for mark in marks]
    seeds = {}
    for seed in range(1, 11):
        values = {
            f: [None if f not in row else row[f] + 0.001 * seed for row in rows] for f in FIGURES
        }
        seeds[seed] = SeedCurve(values, [digest_at(mark, lines) for mark in marks])
    return Band(
        "nano",
        "python train/main.py nano",
        facts.data_fingerprint,
        facts.recipe,
        8,
        facts.val_tokens,
        facts.made,
        marks,
        seeds,
    )


def test_a_real_run_is_compared_with_a_band_of_its_recipe(tmp_path, caplog):
    config = nano_config(tmp_path)
    first = built(config)
    train(first)
    first.close()
    record = json.loads((config.out / "config.json").read_text())
    lines = {line["step"]: line for line in read_metrics(config.out / "metrics.jsonl")}
    path = tmp_path / "nano.json"
    write_band(path, band_of_run(record, lines))
    caplog.set_level(logging.INFO)
    again = replace(config, out=tmp_path / "again", guard=GuardConfig(band=path))
    second = built(again)
    train(second)
    second.close()
    found = {line["step"]: line for line in read_metrics(again.out / "metrics.jsonl")}
    assert all(found[step]["band/outside"] == 0 for step in range(1, 9))
    assert second.progress.band.rows()[0][1].startswith(
        "within the band nano of 10 seeds at all 8 "
    )
    plain = [{k: v for k, v in found[s].items() if k[:4] in ("trai", "toke")} for s in found]
    assert plain == [
        {k: v for k, v in lines[s].items() if k[:4] in ("trai", "toke")} for s in lines
    ]


def test_a_missing_band_file_is_an_error_of_a_new_run_only(tmp_path):
    config = nano_config(tmp_path, guard=GuardConfig(band=tmp_path / "none.json"))
    with pytest.raises(ValueError, match="there is no band .*none.json"):
        built(config)
    assert not config.out.exists()
