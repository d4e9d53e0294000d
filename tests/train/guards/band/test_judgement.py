"""A run is inside its band, or flagged; its own seed's run is known more narrowly."""

from dataclasses import replace

import pytest

from tests.made_bands import MADE, made_band, made_lines
from train.guards.band.comparison import FALSE_ALARMS, compare_at, number_of_comparisons
from train.guards.band.judgement import BandJudge
from train.guards.band.wording import outside_text, verdict_of


def judge_of(lines, seed=99, made=MADE, band=None):
    judge = BandJudge(band or made_band(), seed, made)
    for line in lines:
        judge.add(line["step"], line)
    return judge


def outside(judge):
    return [result.mark for result in judge.results if result.outside]


@pytest.mark.parametrize("seed", [99, 100, 101])
def test_a_sound_run_of_another_seed_is_within(seed):
    judge = judge_of(made_lines(seed), seed)
    assert not judge.paired
    assert outside(judge) == []
    assert verdict_of(judge) == "within the band made of 10 seeds at all 15 marks"


def test_a_run_whose_loss_is_too_high_is_flagged_from_there_on():
    judge = judge_of(made_lines(99, above=0.5))
    assert outside(judge) == list(range(20, 101, 10))
    result = next(result for result in judge.results if result.outside)
    text = outside_text(judge, result)
    assert text.startswith("outside the band made at step 20: ")
    assert "of 10 seeds" in text
    assert "by chance" in text
    assert verdict_of(judge).startswith("outside the band made of 10 seeds at 9 of 15 marks")


def test_beside_its_own_seed_a_hundredth_of_that_is_enough():
    assert outside(judge_of(made_lines(99, above=0.005))) == []
    judge = judge_of(made_lines(3, above=0.005), seed=3)
    assert judge.paired
    assert outside(judge) == list(range(20, 101, 10))
    assert outside(judge_of(made_lines(3), seed=3)) == []


@pytest.mark.parametrize(
    "made", [{"torch": "2.11.0"}, {"device": "cuda"}, {"dtype": "bfloat16"}], ids=str
)
def test_another_torch_device_or_number_format_is_compared_with_all_seeds(made):
    judge = judge_of(made_lines(3, above=0.005), seed=3, made=MADE | made)
    assert not judge.paired
    assert outside(judge) == []


def test_beyond_where_the_rounding_is_known_all_seeds_count():
    band = made_band()
    known = {figure: [*values[:8], *[None] * 100][:15] for figure, values in band.rounding.items()}
    found = judge_of(made_lines(3, above=0.005), 3, band=replace(band, rounding=known))
    assert outside(found) == [20, 30]
    assert [all(c.paired for c in result.comparisons) for result in found.results[7:9]] == [
        True,
        False,
    ]


def test_other_tokens_than_those_of_the_seed_are_flagged_whatever_the_loss():
    judge = judge_of(made_lines(3, tokens_of=4), seed=3, made=MADE | {"device": "cuda"})
    assert outside(judge) == [result.mark for result in judge.results if result.mark]
    text = outside_text(judge, judge.results[-1])
    assert "step 99 did not train on the tokens of the band's run of seed 3" in text


def test_the_chances_of_all_figures_add_up_to_that_of_a_false_alarm():
    band = made_band()
    figures = {"train/loss": 99.0, "train/grad_norm": 0.0, "val/loss": 3.4}
    high, *_ = compare_at(band, 10, figures)
    assert high.outside
    assert high.chance < FALSE_ALARMS / number_of_comparisons(band)
    assert number_of_comparisons(band) == 14 + 14 + 11
    limits = [
        one
        for z in (5, 30)
        for one in compare_at(band, 10, {"train/loss": mean_at(band) + z * 0.01})
    ]
    assert [one.outside for one in limits] == [one.chance < 1e-3 / 39 for one in limits]


def mean_at(band):
    spread = band.spread("train/loss", 10)
    assert spread is not None
    return spread.mean


def test_a_mark_at_which_the_seeds_agree_by_chance_flags_no_run():
    band = made_band()
    number = list(band.marks).index(80)
    usual = band.spread("train/grad_norm", number)
    alike = {seed: curve.figures["train/grad_norm"] for seed, curve in band.seeds.items()}
    for seed, values in alike.items():
        values[number] = usual.mean + 1e-4 * (-1) ** seed
    found = compare_at(band, number, {"train/grad_norm": usual.mean + 4 * usual.deviation})
    assert [one.outside for one in found] == [False]
    found = compare_at(band, number, {"train/grad_norm": usual.mean + 40 * usual.deviation})
    assert [one.outside for one in found] == [True]
