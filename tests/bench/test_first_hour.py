"""Tests of bench/first_hour.py: what is a loss, a plausible sample, the table of both."""

import math
import sys

import pytest

from bench.first_hour import Arguments, Story, at_time, known_words, markdown, rows, run

STORY = {
    "seconds": 200.0,
    "cpu_seconds": 390.0,
    "first_loss": {"seconds": 9.2, "cpu_seconds": 11.0},
    "points": [
        {"step": 0, "bits_per_byte": 8.0, "seconds": 9.0, "cpu_seconds": 10.0},
        {"step": 500, "bits_per_byte": 2.5, "seconds": 170.0, "cpu_seconds": 330.0},
        {"step": 600, "bits_per_byte": 2.4, "seconds": 195.0, "cpu_seconds": 380.0},
    ],
    "samples": [
        {"text": "xq zzv", "known_words": 0.0, "seconds": 10.0, "cpu_seconds": 12.0},
        {"text": "the king", "known_words": 1.0, "seconds": 100.0, "cpu_seconds": 190.0},
    ],
    "final_bits_per_byte": 2.41,
    "last_words": ["the king"],
}


def test_the_share_of_known_words_counts_whole_words():
    assert known_words("The king, kin'!", "the king. The queen's kin") == 1.0
    assert known_words("gacks king", "the king") == 0.5
    assert known_words("", "the king") == known_words("> the king\n\x17$", "the king") == 0.0


def test_bits_per_byte_at_a_time_are_the_last_that_were_measured_by_then():
    assert at_time(STORY, "seconds", 180.0) == 2.5
    assert at_time(STORY, "cpu_seconds", 400.0) == 2.4
    assert math.isnan(at_time(STORY, "seconds", 1.0))


def test_the_table_has_a_column_for_each_side_and_says_what_never_came():
    never = STORY | {"samples": [], "first_loss": None}
    table = {name: cells for name, *cells in rows({"ours": STORY, "other": never}, 3.0, 2)}
    assert table["first printed loss"] == ["9 s (11)", "none"]
    assert table["first sample of 90% known words"] == ["100 s (190)", "none"]
    assert table["bits per byte after 3 minutes"] == ["2.500", "2.500"]
    assert table["bits per byte after 360 CPU seconds"] == ["2.500", "2.500"]
    report = {"sides": {"ours": STORY}, "settings": {"text": "t.txt"}, "hardware": "a CPU"}
    page = markdown(report | {"load": 0.5, "table": rows({"ours": STORY}, 3.0, 2)})
    assert "| last sample: known words | 100% |" in page


def test_a_command_is_followed_line_by_line_and_on_disk_and_its_failure_is_shown(tmp_path):
    story, code = Story(), "print('found data'); print('step 0: train loss 4.2, val loss 4.3')"
    appeared = iter([[("samples", {"text": "a"})]])
    lines = run(
        story,
        [sys.executable, "-c", code],
        tmp_path,
        lambda line: {"step": 0} if "val loss" in line else None,
        lambda: iter(next(appeared, [])),
    )
    assert lines == ["found data", "step 0: train loss 4.2, val loss 4.3"]
    assert story.first_loss is not None
    assert [point["step"] for point in story.points] == [0]
    assert [sample["text"] for sample in story.samples] == ["a"]
    with pytest.raises(RuntimeError, match="oh no"):
        run(story, [sys.executable, "-c", "raise SystemExit('oh no')"], tmp_path)


def test_what_is_no_text_or_no_checkout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no file; give a text file"):
        Arguments(tmp_path / "none.txt", tmp_path).check()
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="has no train.py; give nanoGPT's checkout"):
        Arguments(tmp_path / "a.txt", tmp_path).check()
