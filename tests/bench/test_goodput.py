"""Tests of bench/goodput.py and bench/timed_start.py: the stages of a recovery."""

import ast
import inspect
import json

import pytest

from bench import goodput, timed_start
from storage.json_lines import read_lines
from tests.launching import python, together
from tests.runs import flags, nano_config
from train.recovery.resume_proof.kills import Kill

# Written by bench/timed_start.py itself, not around a call of its list.
OTHER_STAGES = {"began", "imported", "stepped"}


def test_a_recovery_is_split_at_the_slowest_rank_of_each_stage():
    kill = Kill("all", 20, "every process", resumed=15, seconds=9.0, at=100.0)
    times = {"began": (99.0, 101.0, 102.0), "imported": (103.0, 104.5), "stepped": (108.0, 200.0)}
    marks = [{"stage": stage, "at": at} for stage, some in times.items() for at in some]
    found = goodput.stage_seconds(marks, kill)
    assert found == {"began": 2.0, "imported": 2.5, "stepped": 3.5, "line": 1.0}
    recovery = {"kind": "all", "seconds": 9.0, "repeated": kill.lost, "stages": found}
    sums = {"goodput": 0.5, "steps": 10, "step_milliseconds": 50.0, "seconds": 1.0}
    assert "| Python and its imports | 2.50 |" in goodput.table_of(sums | {"kills": [recovery]})


def test_a_stage_is_noted_once_and_a_line_cut_by_a_kill_is_ignored(tmp_path):
    path = tmp_path / "marks.jsonl"
    marks = timed_start.Marks(path)
    step = marks.after(lambda x: x + 1, "stepped")
    assert [step(1), step(2)] == [2, 3]
    with path.open("a") as file:
        file.write('{"stage": "bu')
    found = read_lines(path)
    assert [mark["stage"] for mark in found] == ["stepped"]
    assert json.loads(path.read_text().splitlines()[0])["rank"] == 0


@pytest.mark.parametrize(("caller", "name", "stage"), timed_start.STAGES)
def test_the_module_of_a_stage_still_calls_its_function_by_that_name(caller, name, stage):
    module = inspect.getmodule(caller)
    calls = [
        node.func
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call)
    ]
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    assert name in called, f"{module.__name__} calls no {name}; {stage} would never be noted"
    assert callable(caller.__globals__[name])


def test_every_stage_of_the_table_is_written_by_the_timed_start():
    written = OTHER_STAGES | {stage for _, _, stage in timed_start.STAGES}
    assert goodput.STAGES.keys() <= written


def test_each_rank_of_a_run_notes_its_stages_in_their_order(tmp_path):
    marks = tmp_path / "marks.jsonl"
    words = flags(nano_config(tmp_path, steps=3))[1:]
    done = together(2, "bench/timed_start.py", str(marks), *words)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        stages = [line["stage"] for line in read_lines(marks) if line["rank"] == rank]
        assert stages == [
            *("began", "imported", "met", "joined", "checked", "built"),
            *("rehearsed", "stepped", "closed"),
        ]


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), ([], 2)])
def test_without_a_file_of_marks_the_timed_start_says_how_it_is_used(words, code):
    done = python("bench/timed_start.py", *words)
    assert (done.returncode, "MARKS.jsonl [arguments" in done.stdout) == (code, True)
