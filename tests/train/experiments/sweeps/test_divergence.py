"""When a run counts as diverged, on made-up curves."""

import pytest

from train.experiments.sweeps.divergence import diverged_at

STEPS = 100


def lines(losses, skipped=()):
    return [
        {"step": step, "train/loss": loss, "train/skipped": int(step in skipped)}
        for step, loss in enumerate(losses)
    ]


def falling(step):
    return 3.0 + 5.0 / (1 + step)


SOUND = {
    "falling": [falling(s) for s in range(STEPS)],
    "no better than chance": [8.3 + 0.3 * (-1) ** s for s in range(STEPS)],
    "one spike": [falling(s) + 6.0 * (s == 50) for s in range(STEPS)],
    "four steps that are not finite": [None if 40 <= s < 44 else falling(s) for s in range(STEPS)],
    "higher, but by less than a nat": [falling(s) + 0.8 * (s > 60) for s in range(STEPS)],
}


@pytest.mark.parametrize("name", SOUND)
def test_a_run_that_learns_or_does_not_learn_has_not_diverged(name):
    assert diverged_at(lines(SOUND[name]), STEPS) is None


def test_a_loss_that_stays_above_its_start_diverges_in_the_first_block():
    assert diverged_at(lines([8.3, *[11.0] * 30]), STEPS) == 9


def test_a_loss_that_rises_by_a_nat_from_its_lowest_diverges_though_below_its_start():
    losses = [falling(s) if s < 50 else 5.0 for s in range(STEPS)]
    assert diverged_at(lines(losses), STEPS) == 59


def test_a_loss_that_is_not_finite_counts_as_infinite():
    assert diverged_at(lines([8.0] * 12 + [None] * 8), STEPS) == 19
    assert diverged_at(lines([None] * 10), STEPS) == 9


def test_the_steps_after_which_the_trainer_gives_up_are_a_divergence_whatever_their_loss():
    losses = [8.0] * 40
    assert diverged_at(lines(losses, skipped=range(13, 23)), STEPS) == 22
    assert diverged_at(lines(losses, skipped=[*range(13, 22), *range(23, 30)]), STEPS) is None


def test_a_block_is_a_hundredth_of_a_long_run():
    losses = [8.0 + 3.0 * (100 <= s < 115) for s in range(400)]
    assert diverged_at(lines(losses), 100) == 109
    assert diverged_at(lines(losses), 4000) is None  # 15 of 40 steps: a long spike


def test_the_line_after_the_last_step_and_damaged_ones_are_no_steps():
    odd = [{"step": 10, "val/loss": 99.0}, {"train/loss": 99.0}, {"step": "x", "train/loss": 99.0}]
    assert diverged_at([*lines([8.0] * 10), *odd * 10], STEPS) is None
