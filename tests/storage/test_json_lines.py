"""One rule for damaged lines: skipped by readers, moved away by a resume."""

import json

import pytest

from storage.json_lines import (
    append_line,
    column,
    read_every_line,
    read_last_line,
    read_lines,
    truncate_metrics,
)


def test_metric_lines_past_the_resumed_step_and_a_torn_line_move_away(tmp_path):
    metrics, discarded = tmp_path / "metrics.jsonl", tmp_path / "gone.jsonl"
    lines = [json.dumps({"step": step}) for step in range(4)]
    metrics.write_text("\n".join(lines) + '\n{"step": 4, "tr')
    truncate_metrics(metrics, discarded, first_step=2)
    assert metrics.read_text().splitlines() == lines[:2]
    assert discarded.read_text().splitlines() == [*lines[2:], '{"step": 4, "tr']


def test_a_damaged_byte_among_the_metric_lines_moves_its_line_away(tmp_path):
    metrics, discarded = tmp_path / "metrics.jsonl", tmp_path / "gone.jsonl"
    metrics.write_bytes(b'{"step": 0, "a": "\xff"}\n{"step": 1\xff}\n{"step": 2}\n')
    assert truncate_metrics(metrics, discarded, first_step=3) == 2
    assert metrics.read_text() == '{"step": 2}\n'
    assert discarded.read_text() == '{"step": 0, "a": "\ufffd"}\n{"step": 1\ufffd}\n'


@pytest.mark.parametrize(
    "damaged", [b'{"step": 1', b'{"a": "\xff"}', b"\0" * 20, b"7", b"[" * 5000]
)
def test_a_damaged_line_is_skipped_and_the_others_are_read(tmp_path, damaged):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 0}\n' + damaged + b'\n{"step": 2}\n')
    assert read_lines(path) == [{"step": 0}, {"step": 2}]
    assert read_every_line(path) == [{"step": 0}, None, {"step": 2}]


def test_a_torn_last_line_is_skipped_and_a_missing_file_has_no_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    assert read_lines(path) == []
    assert read_last_line(path) is None
    path.write_bytes(b'{"step": 0}\n{"step": 1, "tr')
    assert read_lines(path) == [{"step": 0}]
    assert read_last_line(path) == {"step": 0}


def test_the_last_line_is_found_behind_many_others(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(9000)))
    assert read_last_line(path) == {"step": 8999}


@pytest.mark.parametrize("before", [None, "", '{"n": 0}\n', '{"n": 0}\n{"to'])
def test_an_appended_line_never_joins_a_torn_one(tmp_path, before):
    path = tmp_path / "starts.jsonl"
    if before is not None:
        path.write_text(before)
    append_line(path, {"n": 1})
    assert read_lines(path)[-1] == {"n": 1}
    assert (
        path.read_text() == (before or "") + "\n" * bool(before and "to" in before) + '{"n": 1}\n'
    )


def test_a_column_leaves_out_lines_without_the_tag(tmp_path):
    lines = [{"step": 0, "a": 1.0}, {"step": 1}, {"step": 2, "a": None}, {"step": 3, "a": 4.0}]
    assert column(lines, "a") == ([0, 3], [1.0, 4.0])
