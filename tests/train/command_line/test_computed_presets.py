"""Presets whose settings follow from the data, a checkpoint and the machine."""

from pathlib import Path

import pytest

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
