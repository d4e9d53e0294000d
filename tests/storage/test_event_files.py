"""Event files are read in the order in which they were written, whatever clock and disk do."""

import errno
import time

import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from storage import event_files
from storage.event_files import TensorBoard
from storage.metrics import MetricLog
from tests.curves import scalars


def write(folder, first, stop, start, purge=True):
    """Points of some steps, of which each says in which start it was made."""
    board = TensorBoard(folder, first if purge else None)
    for step in range(first, stop):
        board.write(step, {"train/loss": float(10 * start + step), "data/digest": "text"})
    board.close()


def shown_everywhere(folder, tag="loss/train"):
    """The points by TensorBoard's two readers, which must agree."""
    multiplexer = EventMultiplexer().AddRun(str(folder), "run")
    multiplexer.Reload()
    again = [(e.step, e.tensor_proto.float_val[0]) for e in multiplexer.Tensors("run", tag)]
    assert scalars(folder, tag) == again
    return again


@pytest.mark.fault("S8", injected="TensorBoard events of steps done again")
def test_events_past_the_resumed_step_are_purged(tmp_path):
    write(tmp_path, 0, 4, start=0, purge=False)
    write(tmp_path, 2, 4, start=1)
    assert shown_everywhere(tmp_path) == [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0)]


@pytest.mark.fault("S8", injected="a clock that went back between two starts")
@pytest.mark.parametrize("hours", [[0, -1], [0, -1, -2], [0, 5, -3], [0, 0, 0], [0, -500_000]])
def test_points_are_in_order_after_the_clock_went_back(tmp_path, monkeypatch, hours):
    now = time.time()
    for start, hour in enumerate(hours):
        monkeypatch.setattr(event_files.time, "time", lambda hour=hour: now + 3600 * hour)
        write(tmp_path, 2 * start, 2 * start + 4, start)
    last = len(hours) - 1
    wanted = [(s, 10.0 * min(s // 2, last) + s) for s in range(2 * last + 4)]
    assert shown_everywhere(tmp_path) == wanted
    assert len(list(tmp_path.iterdir())) == len(hours)


def test_times_never_go_back_within_a_run(tmp_path, monkeypatch):
    now = time.time()
    board = TensorBoard(tmp_path, None)
    for step, hours in enumerate((0, -1, 1)):
        monkeypatch.setattr(event_files.time, "time", lambda hours=hours: now + 3600 * hours)
        board.write(step, {"train/loss": 1.0})
    board.close()
    events = EventMultiplexer().AddRun(str(tmp_path), "run")
    events.Reload()
    times = [event.wall_time for event in events.Tensors("run", "loss/train")]
    assert times == sorted(times)


@pytest.mark.parametrize("name", ["events.out.tfevents.9999999999.a.1.0", "readme", "x.1.2"])
def test_other_files_in_the_folder_change_nothing(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    write(tmp_path, 0, 2, start=0)
    write(tmp_path, 2, 4, start=0)
    assert scalars(tmp_path, "loss/train") == [(s, float(s)) for s in range(4)]


@pytest.mark.fault("S7", injected="a disk that is full for some events", lost="0")
@pytest.mark.parametrize("taken", [0, 1, 11, 40])
def test_events_of_an_outage_are_written_when_it_is_over(tmp_path, monkeypatch, taken):
    whole = event_files.write_all
    full = False

    def write_all(file, content):
        if full:
            file.write(content[:taken])
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(file, content)

    monkeypatch.setattr(event_files, "write_all", write_all)
    log = MetricLog([TensorBoard(tmp_path, None)])
    for step in range(12):
        full = step in (0, 1, 5, 6, 7)
        log.write(step, {"train/loss": float(step)})
        log.write_samples(step, [("", f"text of {step}")])
    log.close()
    assert shown_everywhere(tmp_path) == [(s, float(s)) for s in range(12)]
    assert len(list(tmp_path.iterdir())) == 2  # nothing is left of files that were not begun
