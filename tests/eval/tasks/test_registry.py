"""The registry: a task is one line, its data is read first, missing data only skips it."""

import json
import logging

import numpy as np
import pytest

from eval.main import Arguments
from eval.result import TaskResult
from eval.subject import DataUnavailable, EvalOptions
from eval.tasks.items import HubTable, ItemSource, read_items
from eval.tasks.registry import TASKS, EvalTask, measure, run_tasks
from eval.training_config import EvalConfig
from tests.eval_subjects import tiny_subject

TOY = ItemSource("toy", HubTable("nobody/toy", None, "test", "0" * 40), lambda _, row: row["n"])


def toy(subject, options):
    """A task whose only number is the mean of its items."""
    return TaskResult({"toy/mean": float(np.mean(read_items(TOY, subject, options)))})


def test_one_line_in_the_registry_is_enough_for_a_new_task(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "toy", EvalTask(toy, TOY))
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in (1, 2, 6)))
    options = EvalOptions(task_file=(f"toy={path}",))
    assert measure(tiny_subject(), options, ["toy"]).tags == {"toy/mean": 3.0}
    assert Arguments(checkpoint=tmp_path, tasks=("toy",), task=options).tasks == ("toy",)
    assert EvalConfig(tasks=("toy",)).tasks == ("toy",)


def test_few_shot_examples_are_read_before_a_task_runs(tmp_path, monkeypatch):
    source = ItemSource("toy", TOY.hub, TOY.read, examples=TOY.hub)
    monkeypatch.setitem(TASKS, "toy", EvalTask(pytest.fail, source))
    for name in ("toy", "toy.train"):
        (tmp_path / name).write_text('{"n": 1}\n' if name == "toy" else "torn")
    files = tuple(f"{name}={tmp_path / name}" for name in ("toy", "toy.train"))
    with pytest.raises(ValueError, match=r"toy\.train line 1 is not JSON"):
        run_tasks(tiny_subject(), EvalOptions(task_file=files, few_shot=1), ["toy"])


def test_a_task_without_data_is_skipped_with_one_warning(monkeypatch, caplog):
    def absent(subject, options):
        raise DataUnavailable("no network")

    monkeypatch.setattr("eval.tasks.registry._reported", set())
    monkeypatch.setitem(TASKS, "absent", EvalTask(absent))
    for _ in range(2):
        tags = run_tasks(tiny_subject(), EvalOptions(items=3), ["absent", "pydoc_choice"])
        assert "pydoc_choice/acc" in tags
    assert [r.getMessage() for r in caplog.records] == ["absent is left out: no network"]
    assert caplog.records[0].levelno == logging.WARNING


def test_missing_data_is_reported_before_any_task_runs(monkeypatch):
    monkeypatch.setitem(TASKS, "pydoc_choice", EvalTask(pytest.fail))
    with pytest.raises(ValueError, match="give its folder as --data"):
        run_tasks(tiny_subject(), EvalOptions(), ["pydoc_choice", "val_loss"])
