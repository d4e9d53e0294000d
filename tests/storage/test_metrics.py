"""Metrics reach every writer, and a broken writer never stops training."""

import errno
import json

import pytest

from storage.event_files import TensorBoard
from storage.json_lines import read_lines
from storage.metrics import JsonLinesWriter, MetricLog
from tests.curves import scalars

LINE = {"tokens": 100, "train/loss": 2.5, "data/digest": "00ff", "val/loss": 3.0}


def test_every_writer_gets_the_line(tmp_path):
    log = MetricLog([JsonLinesWriter(tmp_path / "m.jsonl"), TensorBoard(tmp_path / "tb", None)])
    log.write(7, LINE)
    log.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 7, **LINE}
    assert scalars(tmp_path / "tb", "loss/val") == [(7, 3.0)]


def test_a_value_that_is_not_finite_becomes_null_in_json(tmp_path):
    lines = JsonLinesWriter(tmp_path / "m.jsonl")
    lines.write(0, {"train/loss": float("nan")})
    lines.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 0, "train/loss": null}\n'


class Faulty(JsonLinesWriter):
    """Fails at the given steps; in every second of them half a line gets to the disk."""

    def __init__(self, path, error, steps):
        super().__init__(path)
        self.error = error
        self.steps = set(steps)
        self.now = -1

    def write(self, step, metrics):
        if self.now in self.steps:
            if self.now % 2:
                with self.path.open("ab") as file:
                    file.write(b'{"step": ')
            raise self.error
        super().write(step, metrics)


def written(folder, error, steps, count=12):
    """The messages and the steps in the files of a faulty and a sound writer."""
    faulty, sound = Faulty(folder / "m.jsonl", error, steps), JsonLinesWriter(folder / "n.jsonl")
    log = MetricLog([faulty, sound])
    for step in range(count):
        faulty.now = step
        log.write(step, {"train/loss": 1.0})
    log.close()
    return [[line["step"] for line in read_lines(w.path)] for w in (faulty, sound)]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.fault("S7", injected="a disk that is full for some metric lines", lost="0")
@pytest.mark.parametrize("steps", [[0], [4], [3, 4, 5, 6], [10], range(11), [2, 5, 8]])
def test_lines_of_an_outage_are_written_when_it_is_over(tmp_path, caplog, steps):
    assert written(tmp_path, FULL, steps) == [list(range(12))] * 2
    outages = sum(step - 1 not in steps for step in steps)
    said = [r.message for r in caplog.records]
    assert len(said) == 2 * outages
    assert "m.jsonl cannot be written (OSError: [Errno 28] No space left on device)" in said[0]
    assert said[1].startswith("m.jsonl is written again: ")
    assert said[1].endswith(" 0 are lost")


def test_an_outage_longer_than_memory_loses_the_oldest_lines_and_says_how_many(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("storage.metrics.MOST_KEPT_LINES", 3)
    assert written(tmp_path, FULL, range(2, 8))[0] == [0, 1, 5, 6, 7, 8, 9, 10, 11]
    assert caplog.records[-1].message == "m.jsonl is written again: 3 lines were late, 3 are lost"


def test_lines_of_an_outage_that_never_ends_are_counted_at_the_end(tmp_path, caplog):
    assert written(tmp_path, FULL, range(4, 99)) == [list(range(4)), list(range(12))]
    assert [r.message for r in caplog.records][1:] == [
        "8 lines of m.jsonl could not be written and are lost"
    ]


def test_a_line_that_cannot_be_a_line_costs_itself_alone(tmp_path):
    assert written(tmp_path, TypeError("no such type"), [4])[0] == [0, 1, 2, 3, *range(5, 12)]


def test_a_writer_that_never_works_is_given_up(tmp_path, caplog):
    assert written(tmp_path, ImportError("broken"), range(99))[0] == []
    assert [r.message for r in caplog.records][1:] == [
        "12 lines of m.jsonl could not be written and are lost"
    ]


def test_a_folder_in_the_place_of_a_file_is_an_outage(tmp_path, caplog):
    (tmp_path / "m.jsonl").mkdir()
    log = MetricLog([JsonLinesWriter(tmp_path / "m.jsonl")])
    log.write(0, {})
    assert "cannot be written (IsADirectoryError" in caplog.text
    (tmp_path / "m.jsonl").rmdir()
    log.close()
    assert read_lines(tmp_path / "m.jsonl") == [{"step": 0}]
