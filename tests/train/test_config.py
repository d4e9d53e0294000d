"""The configuration: impossible values are refused, and the record has absolute paths."""

from pathlib import Path

import pytest

from eval.training_config import EvalConfig, SampleConfig
from model.config import GPTConfig
from storage.retention import SaveConfig
from train.config import Config
from train.guards.spikes import GuardConfig
from train.schedule import ScheduleConfig


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Config(steps=0), "steps=0 is out of range; use 1 or more"),
        (lambda: Config(batch_tokens=-5), "batch_tokens=-5 is out of range"),
        (lambda: Config(seed=-1), "seed=-1 is out of range; use 0 or more"),
        (
            lambda: Config(batch_tokens=10**12),
            "batch_tokens=1000000000000 is out of range; use at m",
        ),
        (lambda: Config(stop_at="nan"), "stop_at=nan is no time"),
        (lambda: Config(stop_at="inf"), "stop_at=inf is no time"),
        (lambda: Config(stop_at="1e30"), "stop_at=1e30 is no time"),
        (
            lambda: Config(skip_windows=("0:" + "9" * 23,)),
            "skip_windows 0:9+ is no range",
        ),
        (lambda: Config(profile="0:" + "9" * 5000), "profile=0:9+ is not a range of steps"),
        (lambda: Config(hang_seconds=2**62), "hang_seconds=.* is out of range; use at most 86400"),
        (lambda: Config(guard=GuardConfig(window=2**62)), "guard.window=.* use at most 100000"),
        (lambda: SampleConfig(temperature=1e308), "sample.temperature=1e.308 is out of range"),
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
