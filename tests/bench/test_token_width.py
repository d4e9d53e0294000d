"""Tests of bench/token_width.py: its ratio and table, of a measurement of little data."""

from bench import token_width
from bench.token_width import Options, _measure, ratio, table_of


def test_the_ratio_is_of_rounds_and_a_byte_costs_half_of_a_token():
    found = {"uint16": [1.0, 1.0, 2.0, 2.0], "uint32": [1.5, 1.5, 3.0, 3.0]}
    assert (ratio(found).mean, ratio(found).count) == (1.5, 2)
    lines = table_of(found, 3_000_000).splitlines()
    assert lines[2:4] == ["| uint16 | 2 | 4 | 4 |", "| uint32 | 1 | 5 | 4 |"]
    assert "of a token 1.500 (1.500 to 1.500), of a byte 0.750 (0.750 to 0.750)" in lines[-1]


def test_both_widths_are_read_by_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(token_width, "_WINDOWS", 16)
    found = _measure(tmp_path, Options(documents=20, rounds=2, steps=1))
    assert {name: len(seconds) for name, seconds in found.items()} == {"uint16": 4, "uint32": 4}
