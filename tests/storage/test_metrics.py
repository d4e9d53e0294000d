"""Metrics reach every writer under the same tag, and a broken writer never stops training."""

import json
import logging

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from storage.metrics import Console, JsonLinesWriter, MetricLog, TensorBoard, duration

LINE = {
    "tokens": 100,
    "windows": 4,
    "train/loss": 2.5,
    "train/lr": 6e-4,
    "train/grad_norm": 1.25,
    "data/digest": "00ff",
    "speed/step_milliseconds": 120.0,
    "speed/tokens_per_second": 4321.0,
    "speed/seconds_left": 61.0,
    "val/loss": 3.0,
}


def scalars(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_all_writers_show_the_same_tags(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    log = MetricLog(
        [Console(50), JsonLinesWriter(tmp_path / "m.jsonl"), TensorBoard(tmp_path / "tb", None)]
    )
    log.write(7, LINE)
    log.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 7, **LINE}
    assert scalars(tmp_path / "tb", "val/loss") == [(7, 3.0)]
    said = [r.message for r in caplog.records if r.name == "storage.metrics"]
    assert said == [
        "step  7/50 | loss  2.5000 | lr 6.00e-04 | norm  1.250 |     120 ms |     4,321 tok/s | "
        "ETA 0:01:01",
        "step  7/50 | val/loss 3.0000",
    ]


@pytest.mark.fault("S8", injected="TensorBoard events of steps done again")
def test_events_past_the_resumed_step_are_purged(tmp_path):
    for start, purge in ((0, None), (2, 2)):
        board = TensorBoard(tmp_path, purge)
        for step in range(start, 4):
            board.write(step, {"train/loss": float(10 * start + step)})
        board.close()
    assert scalars(tmp_path, "train/loss") == [(0, 0.0), (1, 1.0), (2, 22.0), (3, 23.0)]


def test_event_files_are_named_in_the_order_in_which_they_were_opened(tmp_path):
    for _ in range(2):
        TensorBoard(tmp_path, None).close()
    seconds = [path.name.split(".")[3] for path in tmp_path.iterdir()]
    assert len(set(seconds)) == 2


def test_a_value_that_is_not_finite_becomes_null_in_json(tmp_path):
    lines = JsonLinesWriter(tmp_path / "m.jsonl")
    lines.write(0, {"train/loss": float("nan")})
    lines.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 0, "train/loss": null}\n'


def test_a_failing_writer_is_reported_once_and_the_others_continue(tmp_path, caplog):
    class Full(JsonLinesWriter):
        def write(self, step, metrics):
            raise OSError("no space left on device")

    good = JsonLinesWriter(tmp_path / "good.jsonl")
    full = Full(tmp_path / "full.jsonl")
    log = MetricLog([full, good])
    log.write(0, {"train/loss": 1.0})
    log.write(1, {"train/loss": 1.0})
    log.close()
    full.close()
    assert len((tmp_path / "good.jsonl").read_text().splitlines()) == 2
    assert [r.message for r in caplog.records] == [
        "Full can no longer be written (no space left on device); training continues"
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (61, "0:01:01"), (90061, "25:01:01")]
)
def test_durations_are_hours_minutes_seconds(seconds, text):
    assert duration(seconds) == text
