"""Tests of train/profile_steps.py: traces of chosen steps, and invalid ranges of steps."""

import gzip
import json

import pytest
import torch

from train.profile_steps import ProfiledSteps, parse_span

CPU = torch.device("cpu")


def products(trace):
    """The number of matrix products in a trace file."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sum(event.get("name") == "aten::mm" for event in events)


def take_steps(profiled, count):
    a = torch.ones(2, 2)
    for step in range(count):
        profiled.before(step)
        torch.mm(a, a)
    profiled.close()


@pytest.mark.filterwarnings("ignore")  # a warning of the profiler about its cycles
def test_the_trace_has_exactly_the_requested_steps(tmp_path):
    take_steps(ProfiledSteps("2:5", tmp_path, CPU), 8)
    assert [file.name for file in tmp_path.iterdir()] == ["profile_2_5.json.gz"]
    assert products(tmp_path / "profile_2_5.json.gz") == 3


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_ends_inside_the_range_still_writes_its_trace(tmp_path):
    take_steps(ProfiledSteps("2:50", tmp_path, CPU), 4)
    assert products(tmp_path / "profile_2_50.json.gz") == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["start", "export_chrome_trace"])
def test_a_profiler_that_fails_is_reported_once_and_no_step_is_lost(
    tmp_path, monkeypatch, caplog, method
):
    def fail(*_):
        raise RuntimeError("out of order")

    monkeypatch.setattr(f"train.profile_steps.profile.{method}", fail)
    take_steps(ProfiledSteps("2:5", tmp_path, CPU), 8)
    assert [message for message in caplog.messages if "out of order" in message] == caplog.messages
    assert len(caplog.messages) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_range_nothing_is_traced(tmp_path):
    take_steps(ProfiledSteps(None, tmp_path, CPU), 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("span", ["", "5", "5:5", "7:3", "a:b", "-1:3"])
def test_a_range_without_steps_is_refused(span):
    with pytest.raises(ValueError, match=f"profile={span} is not a range of steps"):
        parse_span(span)
