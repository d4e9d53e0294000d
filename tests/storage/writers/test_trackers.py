"""Trackers of other people: what they get, and what a run does without them."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest

from storage.metrics import MetricLog
from storage.writers.trackers import check_trackers, trackers

RECORD = {"run_id": "a", "config": {"seed": 1}}


def installed(name):
    return importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_an_error_with_its_cure(name, monkeypatch):
    monkeypatch.setattr("storage.writers.trackers.find_spec", lambda name: None)
    check_trackers(())
    with pytest.raises(ValueError, match=rf"not installed; install it by pip .*'\.\[{name}\]'"):
        check_trackers((name,))
    with pytest.raises(ValueError, match="log.to=mlflow is not known; use one of trackio, wandb"):
        check_trackers(("mlflow",))


def test_no_tracker_is_imported_unless_it_is_asked_for(tmp_path):
    log = MetricLog(trackers((), tmp_path, "id"))
    log.write_settings(0, RECORD)
    log.close()
    assert not {"trackio", "wandb"} & set(sys.modules)


@pytest.mark.fault("S7", injected="a tracker that cannot be reached", lost="0")
@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_fails_is_reported_once_and_ends_nothing(
    name, tmp_path, monkeypatch, caplog
):
    broken = ModuleType(name)  # without anything that the writer needs
    monkeypatch.setitem(sys.modules, name, broken)
    log = MetricLog(trackers((name,), tmp_path, "id"))
    log.write_settings(0, RECORD)
    for step in range(5):
        log.write(step, {"train/loss": 1.0})
    log.close()
    assert [r.message.split(" ", 2)[0] for r in caplog.records] == [name, "6"]
    assert "6 lines of" in caplog.messages[1]


def test_wandb_without_a_login_is_not_asked(tmp_path, monkeypatch, caplog):
    settings = SimpleNamespace(mode="online")
    fake = SimpleNamespace(
        login=lambda prompt: False, setup=lambda: SimpleNamespace(settings=settings)
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = MetricLog(trackers(("wandb",), tmp_path, "id"))
    log.write(0, {"train/loss": 1.0})
    assert "run wandb login, or set WANDB_MODE=offline" in caplog.text


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_two_starts_are_one_run_of_the_tracker_without_a_network(name, tmp_path, monkeypatch):
    if not installed(name):
        pytest.skip(f"{name} is not installed (pip install -e '.[{name}]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for first in (0, 2):
        log = MetricLog(trackers((name,), tmp_path, "0123456789"))
        log.write_settings(first, RECORD)
        for step in (first, first + 1):
            log.write(step, {"train/loss": 1.0, "val/loss": 2.0, "data/digest": "00"})
        log.write_samples(first, [("Once", " upon *a* time")])
        log.close()
        assert log.failing() == []
    found = [path for path in tmp_path.rglob("*") if path.name.endswith((".wandb", ".db"))]
    assert found
