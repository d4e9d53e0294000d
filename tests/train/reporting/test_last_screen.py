"""The last screen of a run: its curve, three samples, and commands for what is next."""

from dataclasses import replace

import pytest

from eval.training_config import SampleConfig
from tests.runs import nano_config, run_to_end
from train.reporting import last_screen
from train.reporting.closing_table import write_report
from train.reporting.last_screen import curve_end, shown_samples


def write_samples(folder, texts):
    folder.mkdir()
    for step, text in texts.items():
        (folder / f"step_{step:06d}.txt").write_text(text)
    return folder


def test_samples_of_the_first_the_middle_and_the_last_step_are_shown(tmp_path):
    pages = {
        step: f"> The sea\n was {step}.\n\n> <|endoftext|>\nOther\n" for step in range(0, 90, 10)
    }
    assert shown_samples(write_samples(tmp_path / "samples", pages)).split("\n") == [
        "  step 0",
        "    [The sea] was 0.",
        "  step 40",
        "    [The sea] was 40.",
        "  step 80",
        "    [The sea] was 80.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "word " * 90,
        "x" * 900,
        "\x1b]0;title\x07\x9b2J" * 40,
        "海の上の船" * 60,
        "\n\n\t\r\n" * 50 + "end",
    ],
)
def test_a_sample_takes_few_lines_of_80_columns_and_no_control_character(tmp_path, text):
    shown = shown_samples(write_samples(tmp_path / "samples", {7: f"> <|endoftext|>\n{text}\n"}))
    lines = shown.split("\n")
    assert len(lines) <= 4
    assert all(sum(1 + (c > "\u1100") for c in line) <= 81 for line in lines)  # … is not wide
    assert shown.replace("\n", "").isprintable()


def test_a_run_without_samples_names_none(tmp_path):
    assert shown_samples(tmp_path / "samples") == ""
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "notes.txt").touch()
    assert shown_samples(tmp_path / "samples") == ""


def test_the_end_of_the_curve_has_the_last_points():
    lines = [{"step": step, "val/loss": 9 - step / 1000} for step in range(0, 5000, 1000)]
    assert curve_end(lines) == "8.000 (1,000), 7.000 (2,000), 6.000 (3,000), 5.000 (4,000)"
    assert curve_end([]) == ""


def test_a_finished_run_says_what_is_next(tmp_path, monkeypatch):
    monkeypatch.setattr("train.reporting.closing_table.draw_loss_curve", lambda *_: None)
    config = nano_config(tmp_path, steps=4, sample=SampleConfig(every=2, max_tokens=4))
    report = write_report(run_to_end(replace(config, eval=replace(config.eval, every=2))))
    table, samples, following = report.split("\n\n")
    assert "  its last points " in table
    assert "  samples " in table
    assert [line for line in samples.split("\n") if "step" in line] == [
        "  step 0",
        "  step 2",
        "  step 4",
    ]
    assert f"eval/generate.py --checkpoint {tmp_path / 'run'}" in following
    assert "--steps 8 --allow steps" in following
    assert "own_text.sh" not in following


def test_commands_are_typed_from_the_folder_that_the_user_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my launch", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "my launch" / "node.sh").touch()
    assert last_screen._shown(tmp_path / "my launch" / "node.sh") == "'my launch/node.sh'"
    assert last_screen._shown(tmp_path / "bin" / "tensorboard") == "tensorboard"
