"""The table of a sweep that runs: on a terminal it is rewritten, elsewhere there are lines."""

import io
import json
from dataclasses import dataclass

import pytest

from storage.run_folder import RunFolder
from tests.made_runs import made_line, made_run
from tests.train.experiments.sweeps.made_sweeps import planned
from train.experiments.sweeps.live_table import LiveTable, end_of
from train.experiments.sweeps.outcomes import outcome_of


class Terminal(io.StringIO):
    """Text that a terminal would get."""

    def isatty(self):
        return True


@dataclass
class FakeTrial:
    """As much of a trial as the table looks at."""

    name: str
    folder: RunFolder


@pytest.fixture
def runs(tmp_path):
    return [planned(tmp_path, value, 1) for value in range(40)]


def table_on(stream, runs):
    return LiveTable(runs, {run.name: 40 for run in runs}, stream)


def begin(run, steps=10, loss=None):
    """The folder of a run that has done some steps."""
    run.path.mkdir(exist_ok=True)
    lines = [made_line(step, 40, 3.0, 10) for step in range(steps)]
    lines = [line if loss is None else line | {"train/loss": loss} for line in lines]
    with (run.path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return FakeTrial(run.name, RunFolder(run.path))


def test_a_file_gets_a_line_for_each_start_and_each_end(runs):
    stream = io.StringIO()
    table = table_on(stream, runs[:2])
    trial = begin(runs[0])
    assert table.look([trial]) == {}
    table.look([trial])
    made_run(runs[1].path)
    table.ended(outcome_of(runs[1]), taken=True)
    table.close()
    assert stream.getvalue().splitlines() == [
        "started  optimizer.lr=0,seed=1",
        "1 of 2  optimizer.lr=1,seed=1  finished  val loss 3.0976  1.3 min  (taken)",
    ]


def test_a_run_whose_new_lines_show_that_it_diverges_is_to_be_stopped(runs):
    table = table_on(io.StringIO(), runs)
    trial = begin(runs[0])
    assert table.look([trial]) == {}
    begin(runs[0], 10, loss=None)
    with (runs[0].path / "metrics.jsonl").open("a") as file:
        for step in range(20, 31):
            file.write(json.dumps({"step": step, "train/loss": 50.0}) + "\n")
    assert table.look([trial]) == {runs[0].name: "diverged at step 29"}


def test_a_line_that_is_not_yet_whole_is_read_later(runs):
    stream = Terminal()
    table = table_on(stream, runs)
    trial = begin(runs[0], 2)
    text = json.dumps(made_line(2, 40, 3.0, 10))
    path = runs[0].path / "metrics.jsonl"
    for part in (text[:10], text[10:] + "\nno json\n"):
        with path.open("a") as file:
            file.write(part)
        table.look([trial])
    last = stream.getvalue().split("\x1b[J")[-1]
    assert "3/40" in last.splitlines()[1]


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (30, 8), (200, 60)])
def test_a_terminal_has_one_table_that_fits_and_is_rewritten(runs, monkeypatch, columns, rows):
    monkeypatch.setattr("shutil.get_terminal_size", lambda _: (columns, rows))
    stream = Terminal()
    table = table_on(stream, runs)
    trial = begin(runs[5])
    table.look([trial])
    first = stream.getvalue()
    assert first.startswith("0 of 40 ended, 1 running")
    assert first.count("\n") <= rows - 1
    assert max(map(len, first.splitlines())) < columns
    assert "10/40" in first or columns < 60
    if rows < 40:
        assert f"and {40 - (rows - 3)} more" in first
    table.look([trial])
    assert f"\x1b[{first.count(chr(10))}F\x1b[J" in stream.getvalue()
    table.close()
    assert stream.getvalue().endswith("F\x1b[J")


def test_the_end_of_a_log_is_its_last_lines_that_are_not_empty(tmp_path):
    (tmp_path / "a.log").write_text("\n".join(map(str, range(30))) + "\n\n")
    assert list(end_of(tmp_path / "a.log", 2)) == ["28", "29"]
    assert list(end_of(tmp_path / "b.log", 2)) == []
