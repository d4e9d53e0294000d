"""The configuration: impossible values are refused, and the record has absolute paths."""

from pathlib import Path

import pytest

from model.config import GPTConfig
from train.config import Config, EvalConfig, SampleConfig, SaveConfig
from train.schedule import ScheduleConfig


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Config(steps=0), "steps=0 is out of range; use 1 or more"),
        (lambda: Config(batch_tokens=-5), "batch_tokens=-5 is out of range"),
        (lambda: Config(seed=-1), "seed=-1 is out of range; use 0 or more"),
        (
            lambda: Config(steps=100, schedule=ScheduleConfig(warmup_steps=715)),
            "warmup_steps=715 is not less than steps=100; try .* 10$",
        ),
        (lambda: EvalConfig(tasks=("helaswag",)), "helaswag.*hellaswag"),
        (lambda: EvalConfig(every=-1), r"eval\.every=-1"),
        (lambda: SampleConfig(temperature=float("nan")), r"sample\.temperature=nan"),
        (lambda: SaveConfig(keep=0), r"save\.keep=0 is out of range; use 1 or more"),
        (lambda: ScheduleConfig(warmup_steps=-1), r"schedule\.warmup_steps=-1"),
    ],
)
def test_impossible_values_are_refused_with_their_rule(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_recorded_configuration_has_absolute_paths_of_evaluation_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h.jsonl").symlink_to("blob")  # as in the Hub's cache
    own = EvalConfig(hellaswag_file=Path("h.jsonl"), task_file=("piqa=p.jsonl",))
    found = Config(eval=own).as_json(GPTConfig(), 1)["eval"]
    assert found["hellaswag_file"] == str(tmp_path / "h.jsonl")
    assert found["task_file"] == [f"piqa={tmp_path / 'p.jsonl'}"]
