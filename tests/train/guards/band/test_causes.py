"""Each likely cause is named for a run with its signature, and none for a sound run."""

import pytest

from tests.made_bands import MADE, made_band, made_lines
from train.guards.band.causes import likely_causes
from train.guards.band.judgement import BandJudge

SEED = 3  # in the band, so that a run with it should repeat its curve


def changed(loss=lambda step: 0.0, norm=lambda step: 1.0, validation=None, tokens_from=None):
    """Lines of the seed with a change by step; the validation changes as the loss unless given."""
    lines = made_lines(SEED)
    for line in lines:
        step = line["step"]
        if "train/loss" in line:
            line["train/loss"] += loss(step)
            line["train/grad_norm"] *= norm(step)
            if tokens_from is not None and step >= tokens_from:
                line["data/digest"] = "0" * 16
        if "val/loss" in line:
            line["val/loss"] += (validation or loss)(step)
    return lines


def from_step(first, value, otherwise=0.0):
    return lambda step: value if step >= first else otherwise


CASES = {
    "another data order": changed(from_step(1, 0.2), tokens_from=0),
    "the data stream jumps, repeats": changed(from_step(30, -0.3), tokens_from=30),
    "gradients are summed": changed(norm=lambda step: 2.0),
    "other initial weights or another network": changed(lambda step: 5.0, from_step(9, 1.5, 3.0)),
    "the learning rate is too high": changed(from_step(1, -0.2), from_step(2, 1.1, 1.0)),
    "the learning rate is too low": changed(from_step(1, 0.2), from_step(2, 0.9, 1.0)),
    "the batch is smaller": changed(from_step(1, 0.2), lambda step: 1.2 + 0.1 * (step > 20)),
    "targets are not the next tokens": changed(
        from_step(1, 0.8), lambda step: 0.7, from_step(10, 1.5)
    ),
    "attention sees later tokens": changed(from_step(20, -1.5), from_step(20, 1.3, 1.0)),
    "another constant of the optimizer": changed(from_step(5, 0.03), from_step(5, 1.05, 1.0)),
    "another number format": changed(from_step(3, 0.004)),
}


def causes_of(lines):
    judge = BandJudge(made_band(), SEED, MADE)
    for line in lines:
        judge.add(line["step"], line)
    return likely_causes(judge.results)


@pytest.mark.parametrize("cause", CASES)
def test_a_signature_is_recognised(cause):
    found = causes_of(CASES[cause])
    assert len(found) <= 3
    assert found[0].startswith(cause)


def test_a_sound_run_has_no_cause():
    assert causes_of(made_lines(SEED)) == []
