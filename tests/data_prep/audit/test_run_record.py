"""The record of a run, read from its folder while it may still be written."""

import json

import pytest

from data_prep.audit.run_record import parse_range, read_run


def test_the_settings_of_a_step_are_those_of_the_last_start_before_it(tmp_path):
    config = {"seed": 1, "context_length": 16, "batch_tokens": 64, "skip_windows": ["5:6"]}
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "data_fingerprint": ""}))
    starts = [
        (0, None),
        (8, 128),
        (4, 32),
        (6, None),
    ]  # what each replaced; 8 windows were never in force
    (tmp_path / "starts.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "started_at_step": step,
                    "changed": [{"key": "batch_tokens", "before": before}] if before else [],
                }
            )
            + "\n"
            for step, before in starts
        )
    )
    assert [read_run(tmp_path).settings_at(step).windows for step in range(9)] == [8] * 4 + [4] * 5


def folder_with(folder, *lines):
    """A run folder whose metrics.jsonl has these lines."""
    config = {"seed": 1, "context_length": 16, "batch_tokens": 64}
    (folder / "config.json").write_text(json.dumps({"config": config, "data_fingerprint": ""}))
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def step_line(step):
    numbers = {"step": step, "data/first_window": 4 * step, "data/windows": 4}
    return json.dumps(numbers | {"data/digest": "0" * 16})


def test_only_lines_of_steps_are_steps(tmp_path):
    folder = folder_with(tmp_path, step_line(0), '{"step": 1, "val/loss": 2.0}', step_line(1))
    assert [step.step for step in read_run(folder).steps] == [0, 1]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "data/digest": "x"}',
        "[]",
        '{"step": 1',
        '{"step": -1, "data/first_window": 0, "data/windows": 4, "data/digest": "0"}',
        '{"step": 1, "data/first_window": 1e400, "data/windows": 4, "data/digest": "0"}',
        '{"step": 1, "data/first_window": 1e30, "data/windows": 4, "data/digest": "0"}',
    ],
)
def test_a_damaged_line_is_no_step_and_is_named_unless_it_is_the_last(tmp_path, line):
    at_the_end = read_run(folder_with(tmp_path, step_line(0), line))
    assert ([s.step for s in at_the_end.steps], at_the_end.damaged_lines) == ([0], ())
    before = read_run(folder_with(tmp_path, line, step_line(0)))
    assert ([s.step for s in before.steps], before.damaged_lines) == ([0], (1,))


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ('{"state": "finished", "step": 12}', 12),
        ('{"state": "running", "step": 12}', 6),  # by its newest checkpoint
        ('{"state": "finished", "step": "12"}', 6),
        ("3", 6),
        ("", 6),
        (None, 6),
    ],
)
def test_the_steps_done_are_those_of_a_finished_run_or_of_the_newest_checkpoint(
    tmp_path, status, done
):
    folder = folder_with(tmp_path, step_line(0))
    (folder / "checkpoints" / "step_000006").mkdir(parents=True)
    if status is not None:
        (folder / "status.json").write_text(status)
    assert read_run(folder).done == done


def test_a_checkpoint_of_another_run_does_not_count_as_steps_done(tmp_path):
    folder = folder_with(tmp_path, step_line(0))
    for step, seed in ((6, 1), (99, 2)):
        checkpoint = folder / "checkpoints" / f"step_{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(json.dumps({"step": step, "seed": seed}))
    assert read_run(folder).done == 6


@pytest.mark.parametrize(
    "content",
    [
        "5",
        "[]",
        '{"config": 7}',
        '{"config": {"seed": 1, "context_length": 0, "batch_tokens": 64}, "data_fingerprint": ""}',
        '{"config": {"seed": 1, "context_length": 9, "batch_tokens": 1}, "data_fingerprint": ""}',
        '{"config": {"seed": 1e999, "context_length": 9, "batch_tokens": 9}}',
        '{"config": {"seed": "x", "context_length": 9, "batch_tokens": 9}, "data_fingerprint": 1}',
    ],
)
def test_a_damaged_configuration_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (is damaged|lacks)"):
        read_run(tmp_path)


def test_a_range_may_be_open_at_either_end():
    assert parse_range("5:") == (5, None)
    assert parse_range(":7") == (0, 7)
    assert parse_range(None) == (0, None)
    with pytest.raises(ValueError, match="--steps 5 is no range"):
        parse_range("5")
