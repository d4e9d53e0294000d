"""Spikes: limits follow from recent steps, and only spikes are skipped, on all ranks alike."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storage.checkpoint_folder import write_manifest
from storage.metrics import JsonLinesWriter
from tests.data_sets import tiny_data_set
from tests.faults import scaled, with_fault
from tests.runs import (
    KEEP_ALL,
    RECIPES,
    built,
    final_bytes,
    forget_after,
    lines,
    losses,
    nano_config,
    run_to_end,
    tiny_config,
)
from train import checks
from train.guards.spikes import (
    MIN_VALUES,
    STEPS_UNREAD,
    Guard,
    GuardConfig,
    history_of_lines,
    is_history,
    mean_and_deviation,
)
from train.loop import train
from train.step import SKIPPED

numbers = st.floats(-1e3, 1e3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=100)
    return folder


def guard_after(values, **options):
    """A guard that has recorded one step for each value, as loss and as gradient norm."""
    guard = Guard(GuardConfig(**options))
    for step, value in enumerate(values):
        skipped = not math.isfinite(value)
        guard.record(step, 0, value, value, skipped)
    return guard


def test_a_value_is_measured_in_standard_deviations_from_those_before():
    values = [float(v) for v in range(20)]
    found = guard_after(values, window=16).z_scores(21, 30.0, 11.5)
    before = torch.tensor(values[-16:])
    expected = (30.0 - before.mean()) / before.std(correction=0)
    assert found["guard/loss_z"] == pytest.approx(expected.item())
    assert found["guard/grad_norm_z"] == pytest.approx(0.0)


def test_values_that_are_not_finite_are_no_part_of_the_statistics():
    good = [1.0, 2.0] * 8
    broken = [*good[:5], math.nan, *good[5:9], math.inf, *good[9:]]
    assert guard_after(broken).limits(99) == guard_after(good).limits(99)
    assert guard_after(broken, window=16).z_scores(99, 3.0, 3.0)["guard/loss_z"] == 3.0


@given(
    values=st.lists(numbers, min_size=MIN_VALUES, max_size=60), newest=st.lists(numbers, max_size=2)
)
def test_limits_follow_from_steps_that_all_ranks_have_read(values, newest):
    early = guard_after(values, window=16, skip_spikes=6)
    late = guard_after([*values, *newest], window=16, skip_spikes=6)
    step = len(values) - 1 + STEPS_UNREAD
    assert early.limits(step) == late.limits(step)


def test_norms_before_most_parameters_have_a_gradient_are_no_part_of_the_statistics(tmp_path):
    good = [1.0, 2.0] * 8
    guard = Guard(GuardConfig(window=16, skip_spikes=6), first_step=2)
    for step, value in enumerate([1e-3, 0.5, *good]):
        guard.record(step, 0, value, value, skipped=False)
    resumed = Guard(guard.config, first_step=2)
    resumed.load_history(guard.history(18))
    wanted = guard_after(good, window=16, skip_spikes=6).limits(17)
    assert guard.limits(19) == resumed.limits(19) == wanted
    for recipe, first in (("gpt2", 0), ("modern", 2)):
        run = built(replace(nano_config(tmp_path / recipe), **RECIPES[recipe]))
        run.close()
        assert run.progress.guard.first_step == first


def test_by_default_there_is_no_limit():
    assert guard_after([1.0, 2.0] * 8).limits(16) == (math.inf, math.inf)


@pytest.mark.parametrize("values", [[1.0] * MIN_VALUES, [1.0, 2.0], []])
def test_equal_values_and_too_few_values_have_no_deviation(values):
    assert mean_and_deviation(values) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 2}, "guard.window=2 is too few"),
        ({"skip_spikes": 0.5}, "would skip ordinary steps"),
        ({"skip_spikes": math.nan}, "would skip ordinary steps"),
        ({"every": -1}, "negative"),
    ],
)
def test_a_guard_that_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GuardConfig(**options)


@pytest.mark.parametrize("source", ["checkpoint", "lines"])
def test_a_resumed_run_has_the_limits_of_the_run_that_went_on(tmp_path, source):
    config = GuardConfig(window=16, skip_spikes=6)
    writer, guard = JsonLinesWriter(tmp_path / "metrics.jsonl"), Guard(config)
    for step in range(30):
        loss = math.nan if step == 7 else 1 / (step + 3)
        guard.record(step, 0, loss, 2 * loss, step == 7)
        metrics = {"train/loss": loss, "train/grad_norm": 2 * loss, "train/skipped": int(step == 7)}
        writer.write(step, metrics)
    writer.write(30, {"tokens": 1})
    writer.close()
    resumed = Guard(config)
    of_lines = history_of_lines(tmp_path / "metrics.jsonl", 30, config.window)
    of_checkpoint = json.loads(json.dumps(guard.history(30)))
    assert of_lines == of_checkpoint
    assert is_history(of_lines)
    resumed.load_history(of_lines if source == "lines" else of_checkpoint)
    for step in range(28, 32):
        assert resumed.limits(step) == guard.limits(step) != (math.inf, math.inf)
    assert resumed.z_scores(30, 1.0, 1.0) == guard.z_scores(30, 1.0, 1.0)


def test_a_skipped_step_is_taken_once():
    guard = guard_after([1.0, math.nan])
    assert guard.take_skipped().step == 1
    assert guard.take_skipped() is None
    guard.record(2, 0, math.nan, math.nan, skipped=True)
    guard.record(3, 0, 1.0, 1.0, skipped=False)
    assert guard.take_skipped() is None


GUARD = GuardConfig(window=8, skip_spikes=6)


def test_a_spike_is_skipped_once_and_the_next_step_is_not(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", steps=14, guard=GUARD)
    run = with_fault(built(config), scaled(10, 1e4))
    train(run)
    run.close()
    skipped = [line.get("train/skipped") for line in lines(config.out)]
    assert skipped == [*[0] * 10, 1, 0, 0, 0, None]
    assert lines(config.out)[10]["guard/loss_z"] > 6
    assert [p.name for p in (config.out / "blackbox").iterdir()] == ["step_000010"]


def test_a_skipped_spike_leaves_weights_and_moments_untouched(data, tmp_path):
    run = with_fault(built(tiny_config(data, tmp_path / "run", guard=GUARD)), scaled(0, 1e4))
    for step in range(-10, 0):
        run.progress.guard.record(step, 0, 10.0 + step % 2, 1.0 + step % 2, skipped=False)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    limits = run.progress.guard.limits(0)
    values = run.learner.step(run.loader.next_step(), 1e-2, limits=limits)
    run.close()
    assert values[SKIPPED] == 1
    assert all(torch.equal(w, before[n]) for n, w in run.model.state_dict().items())
    assert not any(state["exp_avg"].any() for state in run.learner.optimizer.state.values())


def test_without_the_option_a_spike_is_only_logged(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", steps=12, guard=GuardConfig(window=8))
    run = with_fault(built(config), scaled(10, 1e4))
    train(run)
    run.close()
    line = lines(config.out)[10]
    assert (line["train/skipped"], line["guard/loss_z"] > 6) == (0, True)
    assert not (config.out / "blackbox").exists()


@pytest.mark.fault("N2", injected="spikes skipped, then a resume", lost="2", identical=True)
@pytest.mark.parametrize(
    ("recipe", "left"), [("gpt2", None), ("gpt2", 0), ("gpt2", 5), ("modern", None)]
)
def test_a_run_resumed_among_spikes_repeats_the_uninterrupted_run(data, tmp_path, recipe, left):
    """`left`: the number of metric lines that are not lost; None: all of them."""
    config = tiny_config(data, tmp_path / "run", steps=14, save=KEEP_ALL)
    guard = GuardConfig(window=8, skip_spikes=1.0, box_weights=False)
    config = replace(config, guard=guard, **RECIPES[recipe])
    run_to_end(config)
    uninterrupted = [(x.get("train/skipped"), x.get("guard/loss_z")) for x in lines(config.out)]
    curve = losses(config.out)
    assert sum(skipped or 0 for skipped, _ in uninterrupted) > 0
    bits = final_bytes(config.out)
    forget_after(config.out, 12)
    if left is not None:
        kept = (config.out / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:left]
        (config.out / "metrics.jsonl").write_bytes(b"".join(kept))
    run_to_end(config)
    assert final_bytes(config.out) == bits
    again = [(x.get("train/skipped"), x.get("guard/loss_z")) for x in lines(config.out)]
    assert (again[-3:], losses(config.out)[-2:]) == (uninterrupted[-3:], curve[-2:])
    if left is None:
        assert (again, losses(config.out)) == (uninterrupted, curve)
        assert len((config.out / "metrics.discarded.jsonl").read_text().splitlines()) == 3
    assert json.loads((config.out / "config.json").read_text())["config"]["guard"]["window"] == 8


def test_a_checkpoint_without_history_takes_it_from_the_lines_and_says_if_they_are_short(
    data, tmp_path, caplog
):
    guard = GuardConfig(window=8, skip_spikes=1.0, box_weights=False)
    config = tiny_config(data, tmp_path / "run", steps=14, save=KEEP_ALL, guard=guard)
    run_to_end(config)
    forget_after(config.out, 12)
    state = config.out / "checkpoints" / "step_000012" / "state.json"
    content = json.loads(state.read_text())
    assert len(content.pop("guard")["applied"]) > 4
    state.write_text(json.dumps(content))
    write_manifest(state.parent)
    (config.out / "metrics.jsonl").unlink()
    run_to_end(config)
    assert "this checkpoint is of an older version, and 5 of the 8 steps before it" in caplog.text


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"applied": 3, "skipped_in_a_row": 0},
        {"applied": [[1, 2.0]], "skipped_in_a_row": 0},
        {"applied": [[1, 2.0, "3"]], "skipped_in_a_row": 0},
        {"applied": [[1.5, 2.0, 3.0]], "skipped_in_a_row": 0},
        {"applied": [], "skipped_in_a_row": None},
    ],
)
def test_what_is_no_history_is_recognised(damaged):
    assert not is_history(damaged)


@pytest.mark.parametrize("largest", [60000, 256])
def test_a_loss_that_is_nan_because_of_an_id_beyond_the_network_ends_the_run(
    tmp_path, monkeypatch, largest
):
    run = built(nano_config(tmp_path))
    rows = len(run.model.head_weight)
    windows = {5: np.array([1, 2, rows - 1]), 7: np.array([3, largest, 1])}
    monkeypatch.setattr(checks, "own_windows", lambda run, first: windows)
    run.progress.guard.record(3, 0, math.nan, 1.0, skipped=True)
    if largest < rows:
        checks.check(run)
    else:
        with pytest.raises(checks.StopTraining, match=f"window 7 of step 3 .* {largest}.* {rows}:"):
            checks.check(run)
    run.close()
