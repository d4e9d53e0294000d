"""What a run has reached is read from every format, in any state, exactly as recorded."""

import json

import pytest

from tests.made_runs import MILLISECONDS, TOKENS, copied_run, made_line, made_run
from train.reporting.run_summary import summarize_run


def summary(path):
    return summarize_run(path, path.name)


@pytest.mark.parametrize("number", range(1, 6))
def test_a_run_of_any_format_is_read(tmp_path, number):
    found = summary(copied_run(tmp_path / "run", number))
    assert (found.state, found.steps_done, found.steps, found.tokens) == ("finished", 8, 8, 1024)
    assert (found.parameters, found.batch_tokens, found.learning_rate) == (4088, 128, 0.01)
    assert found.best_val_loss == found.last_val_loss == pytest.approx(5.3447, abs=1e-4)
    assert found.validation[1] == 64
    assert found.val_curve.tokens == [0, 512, 1024]


def test_the_figures_are_those_of_the_lines(tmp_path):
    run = made_run(tmp_path / "run", steps=40, floor=3.0, every=10)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[20] = json.dumps(made_line(20, 40, 1.0, 10))  # the best, in the middle of the run
    (run / "metrics.jsonl").write_text("\n".join(lines))
    found = summary(run)
    assert (found.best_val_loss, found.best_val_step) == (1 + 4 / 21, 20)
    assert found.last_val_loss == 3 + 4 / 41
    assert found.best_bits_per_byte == (1 + 4 / 21) / 4
    assert found.train_seconds == 40 * MILLISECONDS / 1000
    assert found.tokens_per_second == 64
    assert found.val_curve.tokens == [TOKENS * step for step in (0, 10, 20, 30, 40)]
    assert found.val_curve.seconds == [2.0 * step for step in (0, 10, 20, 30, 40)]
    last = [json.loads(line)["train/loss"] for line in lines[20:40]]
    assert found.train_loss == pytest.approx(sum(last) / 20)


def test_of_a_long_record_every_evaluation_is_read_and_its_time_is_right(tmp_path):
    run = made_run(tmp_path / "run", steps=9000, every=125)
    found = summary(run)
    assert len(found.val_curve.loss) == 73
    assert len(found.train_curve.loss) < 2100
    assert found.best_val_loss == 3 + 4 / 9001
    assert found.train_seconds == pytest.approx(18_000)
    assert found.val_curve.tokens[1] == 125 * TOKENS
    assert found.train_curve.tokens[-1] == 8999 * TOKENS


def test_the_pause_between_two_starts_is_no_time_of_training(tmp_path):
    run = made_run(tmp_path / "run")
    starts = [{"time": "2026-01-01T00:00:00+00:00", "started_at_step": 0}]
    starts += [{"time": "2026-02-01T00:00:00+00:00", "started_at_step": 20}]
    (run / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in starts))
    assert (summary(run).starts, summary(run).train_seconds) == (2, 80.0)


def test_a_running_run_that_no_process_writes_has_stopped(tmp_path):
    run = made_run(tmp_path / "run", state="running")
    assert summary(run).state == "stopped"
    (run / "status.json").unlink()
    assert summary(run).state == "unknown"


def test_a_run_without_a_first_step_has_no_figures(tmp_path):
    run = made_run(tmp_path / "run", state="failed")
    (run / "metrics.jsonl").unlink()
    (run / "status.json").write_text('{"state": "failed", "step": 0, "reason": "no room"}')
    found = summary(run)
    assert (found.state, found.reason, found.steps_done) == ("failed", "no room", 0)
    assert (found.best_val_loss, found.train_loss, found.train_seconds) == (None, None, 0.0)


def test_scores_are_the_last_ones_with_their_errors_also_of_a_watcher(tmp_path):
    run = made_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "tokens": 5120, "a/acc": 0.5, "a/acc_stderr": 0.1}\n')
    (run / "evals.jsonl").write_text(
        '{"step": 20, "a/acc": 0.9}\n{"step": 30, "b/acc_norm": 0.3, "b/acc_norm_stderr": 0.2}\n'
    )
    scores = summary(run).scores
    assert {tag: (s.value, s.standard_error, s.step) for tag, s in scores.items()} == {
        "a/acc": (0.5, 0.1, 40),
        "b/acc_norm": (0.3, 0.2, 30),
    }


def test_only_a_watcher_with_the_settings_of_the_run_gives_its_validation_loss(tmp_path):
    run = made_run(tmp_path / "run", every=99)
    (run / "metrics.jsonl").write_text('{"step": 0, "tokens": 128, "train/loss": 5.0}\n')
    (run / "evals.jsonl").write_text(
        '{"step": 20, "val/loss": 4.0, "options": ""}\n'
        '{"step": 30, "val/loss": 1.0, "options": "--val-tokens 64"}\n'
    )
    assert (summary(run).best_val_loss, summary(run).best_val_step) == (4.0, 20)


@pytest.mark.parametrize(("name", "content"), [("config.json", "{"), ("metrics.jsonl", "\0" * 99)])
def test_a_damaged_record_is_named(tmp_path, name, content):
    run = made_run(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        summary(run)


def test_nothing_is_written_to_a_run(tmp_path):
    run = copied_run(tmp_path / "run")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")}
    summary(run)
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")}
