"""A band's file: read as it was written, and damage is named. Those that come with Ratchet."""

import json
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from tests.made_bands import made_band
from train.checkpoints.run_facts import run_facts
from train.command_line.parse import parse
from train.guards.band.marks import FIGURES, marked_steps
from train.guards.band.recipe import recipe_differences
from train.guards.band.record import SHIPPED, read_band, write_band

BANDS = sorted(SHIPPED.glob("*.json"))


def test_a_band_is_read_as_it_was_written(tmp_path):
    band = made_band()
    write_band(tmp_path / "made.json", band)
    found = read_band(tmp_path / "made.json")
    assert replace(found, seeds={}, rounding={}) == replace(band, seeds={}, rounding={})
    for seed, curve in band.seeds.items():
        assert found.seeds[seed].digests == tuple(curve.digests)
        for figure in FIGURES:
            known = [value or 0 for value in curve.figures[figure]]
            got = [value or 0 for value in found.seeds[seed].figures[figure]]
            assert got == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"marks": [0, 2, 1]}, "its marks are not steps in order"),
        ({"seeds": {}}, "it has 0 seeds"),
        ({"seeds": []}, "seeds is a list"),
        ({"recipe": None}, "recipe is missing"),
        ({"rounding": {"count": [1]}}, "KeyError"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, change, said):
    path = tmp_path / "made.json"
    write_band(path, made_band())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        read_band(path)


def test_a_list_of_another_length_or_a_text_for_a_number_is_named(tmp_path):
    path = tmp_path / "made.json"
    write_band(path, made_band())
    record = json.loads(path.read_text())
    record["seeds"]["3"]["val/loss"][2] = "5.0"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="a list has not one number for each mark"):
        read_band(path)


@pytest.mark.parametrize("path", BANDS, ids=lambda path: path.stem)
def test_a_shipped_band_says_what_its_seeds_say(path):
    record, band = json.loads(path.read_text()), read_band(path)
    assert band.name == path.stem
    assert tuple(band.marks) == marked_steps(band.steps)
    assert not band.rounding or band.rounding_counts[5] >= 1
    for figure in FIGURES:
        for number in range(len(band.marks)):
            values = [curve.figures[figure][number] for curve in band.seeds.values()]
            known = [value for value in values if value is not None]
            told = {key: row[number] for key, row in record["over_seeds"][figure].items()}
            if len(known) < 10:
                assert set(told.values()) == {None}
            else:
                assert told["count"] == len(known)
                assert told["mean"] == pytest.approx(fmean(known), abs=1e-6)
                assert told["deviation"] == pytest.approx(stdev(known), abs=1e-6)


@pytest.mark.parametrize("path", BANDS, ids=lambda path: path.stem)
def test_the_command_of_a_shipped_band_still_makes_such_a_run(path):
    band = read_band(path)
    config = parse(band.command.split()[2:])
    record = {
        "config": config.as_json(config.network_for(4096), 8),
        "run": {"steps": config.steps},
        "data_fingerprint": "",
    }
    # What follows from the data is a number only once they are read.
    found = recipe_differences(band.recipe, run_facts(record).recipe)
    assert found == []
