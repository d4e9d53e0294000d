"""Runs on a mixture: exact over resumes, changes of weights and any number of ranks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_prep.order.training_data import open_training_data
from data_prep.order.weights import weight_changes
from data_prep.order.windows import read_windows, windows_digest
from eval.subject import EvalOptions, load_subject, with_checkpoint_defaults
from eval.tasks.mixture_loss import val_loss
from eval.tasks.val_loss import validation_sums
from eval.training_config import EvalConfig
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.runs import (
    NANO,
    alone,
    built,
    forget_after,
    lines,
    losses,
    run_to_end,
    tiny_config,
)
from train.checkpoints.run_position import load_position
from train.mixture import weight_starts
from train.preflight.inputs import check_inputs

T = 16
SAVE = SaveConfig(4, 0, keep=99)
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
CHANGES = ("5", "0.25", "0.25", "0.5")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name, documents, seed in (("a", 90, 1), ("b", 40, 2), ("c", 12, 3)):
        tiny_data_set(folder / name, documents, seed, tokenizer=small_tokenizer())
    return folder


def places(folders, *weights):
    names = zip("abc", weights, strict=False)
    return tuple(Path(f"{folders / name}:{weight}") for name, weight in names)


def config_of(folders, out, **changes):
    """Eight steps of eight windows; the weights change at step 5."""
    data = places(folders, 0.5, 0.3, 0.2)
    own = {"data": data, "data_weights_at": CHANGES, "model": NANO, "save": SAVE}
    return replace(tiny_config(folders, out), **(own | changes))


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
    config = config_of(folders, tmp_path_factory.mktemp("finished") / "run")
    run_to_end(config)
    return config


def test_each_step_reads_what_follows_from_sources_weights_seed_and_position(finished):
    data = open_training_data(finished.data)
    starts = weight_starts(finished.weight_changes, (), 0, 0, 8)
    assert [start.first_window for start in starts] == [40]
    stream = data.stream(finished.seed, starts)
    for step, line in enumerate(lines(finished.out)[:-1]):
        assert line["data/first_window"] == 8 * step
        digest = windows_digest(8 * step, read_windows(stream, 8 * step, 8, T))
        assert line["data/digest"] == f"{digest:016x}"
    counts = stream.counts(64)
    line = lines(finished.out)[-2]
    for source, count in zip(data.sources, counts.tolist(), strict=True):
        assert line[f"data/{source.name}/epochs"] == pytest.approx(count * T / source.tokens)
    assert sum(line[f"data/{name}/share"] for name in "abc") == 1
    assert counts.tolist() == [20 + 6, 12 + 6, 8 + 12]


@pytest.mark.parametrize("at", [4, 6])
def test_a_run_stopped_before_or_after_the_change_is_continued_to_the_bit(
    folders, finished, tmp_path, at
):
    config = config_of(folders, tmp_path / "run", save=SaveConfig(2, 0, keep=99))
    run_to_end(config)
    forget_after(config.out, at)
    found = load_position(RunFolder(config.out).checkpoint(at)).mixture
    begun = [{"step": 5, "first_window": 40, "weights": ["1/4", "1/4", "1/2"]}]
    assert found == (begun if at == 6 else None)
    run_to_end(config)
    assert losses(config.out) == losses(finished.out)
    digests = [line.get("data/digest") for line in lines(config.out)]
    assert digests == [line.get("data/digest") for line in lines(finished.out)]


def test_what_was_read_cannot_be_changed_but_what_comes_can(folders, tmp_path):
    config = config_of(folders, tmp_path / "run", steps=6)
    run_to_end(config)
    longer = replace(config, steps=8, allow=("steps", "data_weights_at"))
    earlier = replace(longer, data_weights_at=("3", "1", "1", "1", *CHANGES))
    with pytest.raises(ValueError, match=r"data_weights_at differs before step 6.*with 5 0\.25"):
        run_to_end(earlier)
    with pytest.raises(ValueError, match="data_weights_at"):
        run_to_end(replace(longer, allow=("steps",), data_weights_at=()))
    branch = replace(earlier, out=tmp_path / "b", branch=RunFolder(config.out).checkpoint(6))
    with pytest.raises(ValueError, match="data_weights_at differs before step 6"):
        run_to_end(branch)
    assert not branch.out.exists()
    with pytest.raises(ValueError, match="give the same data sets with the same weights in the"):
        run_to_end(replace(longer, data=places(folders, 0.4, 0.4, 0.2)))
    same = ("5", "1", "1", "2")  # as CHANGES
    run_to_end(replace(longer, data_weights_at=(*same, "7", "1", "0", "0")))
    assert lines(config.out)[-2]["data/a/share"] == 1
    position = load_position(RunFolder(config.out).checkpoint(8))
    assert [start["first_window"] for start in position.mixture or ()] == [40, 56]
    assert position.data == [f"{folders / name}:{weight}" for name, weight in WEIGHTS.items()]


def test_a_change_far_behind_skipped_windows_is_found_at_once():
    changes = weight_changes([str(10**12 - 1), "1", "1"], 2)
    (start,) = weight_starts(changes, (), 0, 0, 8, ((20, 37),))
    assert start.first_window == 8 * (10**12 - 1) + 37 - 16


def test_skipped_windows_are_windows_of_the_mixture(folders, tmp_path):
    config = config_of(folders, tmp_path / "run", skip_windows=("20:37",))
    run_to_end(config)
    firsts = [line["data/first_window"] for line in lines(config.out)[:-1]]
    assert firsts == [0, 8, 37, 45, 53, 61, 69, 77]
    mixture = load_position(RunFolder(config.out).checkpoint(8)).mixture
    assert [start["first_window"] for start in mixture or ()] == [61]


def test_validation_is_of_each_source_and_their_mean_by_weight(folders, tmp_path):
    evals = EvalConfig(every=8, val_tokens=96, tasks_every=0, tasks=())
    config = config_of(folders, tmp_path / "run", eval=evals, data_weights_at=())
    run_to_end(config)
    found = lines(config.out)[-1]
    data = open_training_data(config.data)
    checkpoint = RunFolder(config.out).checkpoint(8)
    subject = load_subject(checkpoint, alone())
    expected = 0.0
    for source in data.sources:
        shards = source.data.split("val")
        tokens = min(32, (shards.tokens - 1) // T * T)
        sums = validation_sums(subject, shards, tokens, T, 2, torch.float32)
        own = sums.tags(f"val/{source.name}")
        assert own.items() <= found.items()
        expected += float(source.weight) * own[f"val/{source.name}/loss"]
    assert found["val/loss"] == pytest.approx(expected, abs=1e-12)
    options = with_checkpoint_defaults(checkpoint, EvalOptions(micro_batch=2))
    tags = val_loss(subject, options).tags
    assert {name: found[name] for name in tags} == tags


def test_a_start_says_how_often_each_source_will_be_read_and_a_limit_is_kept(
    folders, tmp_path, caplog
):
    caplog.set_level("INFO")
    config = config_of(folders, tmp_path / "run", data_weights_at=(), data_max_epochs=None)
    data = open_training_data(config.data)
    small = data.sources[2].tokens
    with pytest.raises(
        ValueError, match=rf"data_max_epochs=0.2 but {folders}/c would be read .* times in 8 steps"
    ):
        check_inputs(replace(config, data_max_epochs=0.2), alone())
    with pytest.raises(ValueError, match="give a smaller weight"):  # and not --steps 0
        check_inputs(replace(config, data_max_epochs=1e-6), alone())
    with pytest.raises(ValueError, match="data_max_epochs=0; use more than 0"):
        replace(config, data_max_epochs=0)
    limited = check_inputs(replace(config, steps=None, data_max_epochs=0.5), alone())
    windows = data.assignment().counts(8 * limited.steps)
    more = data.assignment().counts(8 * limited.steps + 8)
    assert windows[2] * T / small <= 0.5 < more[2] * T / small
    whole = check_inputs(replace(config, steps=None), alone())
    assert whole.steps == -(-data.tokens // 128)
    check_inputs(replace(config, steps=400), alone())
    assert f"{folders}/c will be read" in caplog.text
    run = built(replace(config, data_weights_at=("5", "1", "1", "2", "9", "1", "0", "0")))
    run.close()
    epochs = (5 * 8 * 0.2 + 3 * 8 * 0.5) * T / small
    assert "  from step 5 on: 25.0%, 25.0%, 50.0%\n" in caplog.text
    assert "on: 100.0%, 0.0%, 0.0% (the run ends at step 8)\n" in caplog.text
    assert f"c   20.0% of the windows, {small:,} tokens, read {epochs:.2f} times" in caplog.text


def test_a_stage_copies_every_source(folders, finished, tmp_path):
    config = config_of(folders, tmp_path / "run", stage=tmp_path / "stage")
    run = run_to_end(config)
    copied = {source.data.folder.parent for source in run.data.sources}
    assert copied == {tmp_path / "stage"}
    assert losses(config.out) == losses(finished.out)


def test_a_source_too_short_for_a_window_is_named(folders, tmp_path):
    other = tiny_data_set(
        tmp_path / "short", lengths=[9], val_fraction=0, tokenizer=small_tokenizer()
    ).folder
    config = config_of(folders, tmp_path / "run", data_weights_at=())
    data = (*config.data[:2], Path(f"{other}:1"))
    with pytest.raises(ValueError, match=f"needs 17 training tokens and {other} has 9"):
        check_inputs(replace(config, data=data), alone())
    assert not config.out.exists()
