"""Tests of bench/recipe.py: the order of its runs, where it continues, and its tables."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import recipe
from bench.bare_run import bare_learner
from bench.recipe_plan import (
    FIRST_SEED,
    FULL,
    GPT2,
    MIDDLE,
    MODERN,
    PIECES,
    SIZES,
    Timing,
    Trial,
    base_config,
    contestants,
    pieces,
    plan,
)
from bench.recipe_report import draw, markdown, steps_to, summary
from data_prep.dataset.shards import open_data_set
from parallel.ranks import start
from tests.data_sets import tiny_data_set
from tests.launching import python
from train.presets import PRESETS
from train.step import StepBatch

BASE = base_config(Path("nowhere"), n_vocab=200, steps=40, batch_tokens=256)


def record(trial, losses, steps=(0, 10, 20, 40)):
    """What a finished run leaves."""
    own = {"size": trial.size, "variant": trial.variant, "option": trial.option}
    own |= {"seed": trial.config.seed, "parameters": 300, "parameters_of_blocks": 200}
    return own | {"steps": list(steps[: len(losses)]), "losses": losses}


def finished(seeds, loss_of, base=BASE):
    """The records of all runs. `loss_of(trial)` is a curve's losses."""
    found = {}
    while left := [one for one in plan(base, seeds, found) if one.name not in found]:
        job = left[0]
        timing = {GPT2: 0.5, MODERN: 0.6}
        found[job.name] = timing if isinstance(job, Timing) else record(job, loss_of(job))
    return found


def curve(trial):
    """gpt2 ends at 5, best at 3e-3; modern at 4; a piece at 4.5, and the shortcuts at 3.9."""
    last = {GPT2: 5.0, MODERN: 4.0, "shortcuts": 3.9}.get(trial.variant, 4.5)
    last += 0.001 * trial.config.seed
    last += 0.1 * (trial.variant == GPT2 and trial.option != "0.003")
    return [7.6, 6.0, last + 0.5, last]


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([7.0, 6.0, 5.0, 4.0], 15.0),
        ([5.5, 6.0, 5.0, 4.0], 0.0),
        ([7.0, 6.0, 5.5, 6.0], 20.0),
        ([7.0, 6.0, 5.6, 5.6], None),
        ([7.0, 6.0, None], None),
        ([7.0, 7.0, 5.5, 5.0], 20.0),
    ],
)
def test_the_first_crossing_counts_and_one_that_never_comes_is_none(losses, step):
    assert steps_to(5.5, (0, 10, 20, 40)[: len(losses)], losses) == step


def test_the_rates_are_found_on_one_seed_and_the_best_has_the_others():
    names = [name.rpartition("_") for name in finished(3, curve) if f"_{GPT2}_" in name]
    by_seed = {seed: [a for a, _, b in names if b == f"seed{seed}"] for seed in (1, 2, 3)}
    assert len(by_seed[FIRST_SEED]) == 5 * len(SIZES)
    assert by_seed[2] == by_seed[3] == [f"{size}_{GPT2}_0.003" for size in SIZES]


def test_a_call_that_ends_early_has_every_size_before_the_second_seed_and_the_pieces():
    order = list(finished(2, curve))
    last = max(order.index(f"{size}_step_seconds") for size in SIZES)
    assert all("seed1" in name or "seconds" in name for name in order[: last + 1])
    assert not any(piece in name for piece in PIECES for name in order[: last + 1])
    assert len(order) == len(set(order))


@pytest.mark.long
def test_every_piece_changes_the_first_updates(monkeypatch):
    monkeypatch.setattr("bench.recipe_plan._CONTEXT_LENGTH", 16)
    ranks, short = start("cpu"), replace(BASE, batch_tokens=16)
    ids = torch.randint(200, (1, 17), dtype=torch.int16)

    def trained(config, change):
        learner = bare_learner(replace(config, seed=3), ranks)
        with change(learner):
            for _ in range(3):
                learner.step(StepBatch(0, 0, ids), 0.01)
            return learner.model.hidden(ids[:, :-1].long()).sum().item()

    listed = pieces(short)
    assert [variant.name for variant in listed] == list(PIECES)
    modern = contestants(MIDDLE, short)[1]
    plain = trained(modern.options["preset"], modern.change)
    for variant in listed:
        # The schedule is not part of the Learner.
        if variant.name != "schedule":
            config = next(iter(variant.options.values()))
            assert trained(config, variant.change) != plain, variant.name
    assert trained(modern.options["preset"], modern.change) == plain


def test_the_networks_have_the_sizes_that_they_are_called_after():
    ranks = start("cpu")
    sizes = []
    for size in SIZES:
        for variant in contestants(size, BASE):
            model = bare_learner(next(iter(variant.options.values())), ranks).model
            sizes.append(round(sum(p.numel() for p in model.h.parameters()) / 1e6, 1))
    assert sizes == [0.4, 0.4, 1.0, 1.0, 3.1, 3.1]


def test_the_full_size_is_that_of_the_presets():
    base = base_config(Path("nowhere"), 50257, 858, 65536)
    gpt2, modern = contestants(FULL, base)
    assert list(gpt2.options) == ["0.0006", "0.0018"]
    for variant, preset in ((gpt2, "gpt2"), (modern, "modern")):
        config = next(iter(variant.options.values()))
        assert (config.model, config.micro_batch) == (PRESETS[preset].model, 64)
    assert not any(one.size != FULL for one in plan(base, 1, {}, [FULL]))


def test_the_tables_have_steps_time_goals_and_each_piece():
    result = summary(finished(3, curve), 40)
    text = markdown(result)
    # From 6.0 at step 10 to 4.501 at step 20: 5.001 is a third before the end; 16.66 of 40 steps.
    assert "| 5.002 ± 0.001 (0.003) | 4.002 ± 0.001 | 17 ± 0 (42%) | reached |" in text
    assert "| 0.50 / 0.60 | 10.0 of 20.0 (50%) | reached | no | 3 |" in text
    assert "| no QK-norm | 4.5020 ± 0.0010 | +0.5000 ± 0.0000 | higher | 3 |" in text
    assert "| with shortcuts | 3.9020 ± 0.0010 | -0.1000 ± 0.0000 | lower | 3 |" in text
    assert sum(title in text for title in PIECES.values()) == len(PIECES)


def test_a_modern_that_is_worse_is_reported_as_such(tmp_path):
    found = finished(
        1, lambda trial: [7.6, 7.0, 6.9, 6.8] if trial.variant == MODERN else curve(trial)
    )
    result = summary(found, 40)
    text = markdown(result)
    assert "| not reached | missed | 0.50 / 0.60 | not reached, of 20 | missed | in " in text
    assert "| no QK-norm | 4.5010 | -2.2990 | lower on one seed | 1 |" in text
    draw(result, found, tmp_path / "a.png")


def test_a_run_that_diverged_is_the_worst_option_and_says_so(tmp_path):
    def curves(trial):
        diverged = trial.variant == "qk_norm" or trial.option in ("0.003", "0.7")
        return [7.6, None] if diverged else curve(trial)

    found = finished(2, curves)
    assert f"small_{GPT2}_0.001_seed2" in found
    result = summary(found, 40)
    json.dumps(result, allow_nan=False)
    assert "| no QK-norm | diverged | diverged | diverged | 2 |" in markdown(result)
    draw(result, found, tmp_path / "a.png")


def test_tables_and_plot_stand_with_no_run_at_all_and_with_one(tmp_path):
    first = plan(BASE, 3, {})[0]
    for found in ({}, {first.name: record(first, [7.0, 6.0])}):
        result = summary(found, 40)
        assert len(markdown(result).splitlines()) == 6
        assert markdown(result).endswith("| modern | not run | | | |\n")
        draw(result, found, tmp_path / "a.png")


@pytest.mark.slow
def test_it_continues_with_what_is_missing_and_refuses_runs_of_other_settings(tmp_path):
    tiny_data_set(tmp_path / "data", vocab=200)
    out, results = tmp_path / "out", tmp_path / "new" / "recipe.json"
    words = ["bench/recipe.py", "--data", str(tmp_path / "data"), "--out", str(out)]
    words += ["--seeds", "1", "--batch-tokens", "128", "--val-tokens", "128"]
    words += ["--results", str(results), "--steps"]
    data = tiny_data_set(tmp_path / "other", vocab=200)
    n_vocab = data.tokenizer().n_vocab
    base = base_config(tmp_path / "data", n_vocab, 10, 128)
    found = finished(1, curve, base)
    out.mkdir()
    for name in list(found)[1:]:
        (out / f"{name}.json").write_text(json.dumps(found[name]))
    done = python(*words, "10")
    assert done.returncode == 0, done.stderr
    assert "0 or more runs are left" in done.stdout
    assert "| no QK-norm |" in done.stdout
    report = json.loads(results.read_text())
    assert report["runs"].keys() == found.keys()
    name = next(iter(found))
    assert (
        report["runs"][name]["losses"] == json.loads((out / f"{name}.json").read_text())["losses"]
    )
    assert len(report["runs"][name]["losses"]) == 11
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    refused = python(*words, "20")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "has runs with steps=10, not 20; give another --out" in refused.stderr


@pytest.mark.long
def test_modern_has_gpt2s_loss_in_half_of_the_steps_and_60_percent_of_the_time(tmp_path):
    tokenizer, folder = tmp_path / "tokenizer", tmp_path / "data"
    words = ["--embedded", "--vocab-size", "1024", "--out", str(tokenizer)]
    assert python("data_prep/train_tokenizer.py", *words).returncode == 0
    words = ["--embedded", "--tokenizer", str(tokenizer), "--out", str(folder)]
    assert python("data_prep/text.py", *words).returncode == 0
    data, ranks = open_data_set(folder), start("cpu")
    base = base_config(folder, data.tokenizer().n_vocab, 80, 2048)
    job = plan(base, 1, {}, ["small"])
    trials = [one for one in job if isinstance(one, Trial) and one.option in ("0.003", "preset")]
    gpt2, modern = (recipe._run_trial(trial, data, 8192, ranks) for trial in trials)
    needed = steps_to(gpt2["losses"][-1], modern["steps"], modern["losses"])
    assert needed is not None
    assert needed <= 0.5 * 80
    times = recipe._time_steps(next(one for one in job if isinstance(one, Timing)), ranks)
    assert needed * times[MODERN] <= 0.6 * 80 * times[GPT2]
