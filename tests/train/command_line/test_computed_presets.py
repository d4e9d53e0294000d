"""Presets whose settings follow from the data, a checkpoint and the machine."""

from pathlib import Path

import pytest

from data_prep.order.training_data import open_training_data
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.model.hf_format.models import our_checkpoint
from tests.runs import GOLDEN
from train.command_line.parse import parse


def test_what_a_computed_preset_needs_is_named():
    with pytest.raises(ValueError, match="own-text needs --data: a data set, made by"):
        parse(["own-text"])
    with pytest.raises(ValueError, match="finetune needs --init: a checkpoint"):
        parse(["finetune", "--data", "data/x"])


def test_a_run_on_own_text_is_named_after_its_data_and_asks_no_questions_about_python():
    data = GOLDEN / "data_set"
    config = parse(["own-text", "--data", str(data), "--steps", "7"])
    assert (config.data, config.out) == ((data,), Path("runs/data_set"))
    assert (config.eval.tasks, config.steps) == ((), 7)


def test_a_computed_preset_takes_a_mixture_and_counts_until_its_first_source_repeats(tmp_path):
    a, b = (
        tiny_data_set(tmp_path / n, 60, i, tokenizer=small_tokenizer()) for i, n in enumerate("ab")
    )
    words = ["--data", f"{a.folder}:0.1", f"{b.folder}:0.9", "--device", "cpu"]
    data = open_training_data([Path(word) for word in words[1:3]])
    tokens = [one.manifest.train.tokens for one in (a, b)]
    assert data.tokens_before_a_repeat == min(10 * tokens[0], int(tokens[1] / 0.9))
    own = parse(["own-text", *words])
    assert (own.data, own.out) == (tuple(map(Path, words[1:3])), Path("runs/a"))
    our_checkpoint(tmp_path / "init", small_tokenizer())
    tuned = parse(["finetune", "--init", str(tmp_path / "init"), *words])
    assert (tuned.data, tuned.out) == (own.data, Path("runs/a-finetuned"))
    assert tuned.sample.prompts == own.sample.prompts
