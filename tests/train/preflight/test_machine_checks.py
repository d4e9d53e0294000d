"""Checks of the machine: arithmetic, temperatures, clocks and versions."""

import pytest

from tests.runs import alone
from train.preflight import machine_checks
from train.preflight.machine_checks import agreement_verdict


@pytest.mark.parametrize(
    ("exact", "bits", "verdict", "text"),
    [
        ([True, True], [5, 5], "ok", "the same bits on all ranks"),
        ([True, True, True], [5, 6, 5], "warn", "other bits on rank 1"),
        ([True, False], [5, 5], "fail", "rank 1 multiplies integers wrongly"),
    ],
)
def test_a_rank_with_other_results_is_named(exact, bits, verdict, text):
    found = agreement_verdict(exact, bits)
    assert (found.verdict, text in found.text) == (verdict, True)


@pytest.mark.parametrize(
    ("celsius", "text"),
    [
        ([31, 40], "at most 40 degrees Celsius"),
        ([None], "the temperature of rank 0 cannot be read (by nvidia-smi)"),
        ([31, None], "at most 31 degrees Celsius, the temperature of rank 1 cannot be read"),
    ],
)
def test_an_unknown_temperature_is_reported(celsius, text):
    assert machine_checks.temperature_verdict(celsius).startswith(text)


def test_different_clocks_and_an_old_torch_are_found(monkeypatch):
    monkeypatch.setattr(machine_checks, "all_gather_object", lambda own: [own, own + 60])
    assert machine_checks.check_clocks(alone()).verdict == "warn"
    monkeypatch.setattr(machine_checks.torch, "__version__", "2.9.1+cu130")
    assert machine_checks.check_versions()[0].verdict == "fail"
