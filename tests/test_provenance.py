"""What a results file says of the command that made it."""

import shlex

from bench.provenance import provenance


def test_the_command_is_what_was_typed_but_for_places_outside_the_project(monkeypatch):
    typed = ["--side", "a; ../b", "--data=/home/alice/set", "hellaswag=/home/alice/h.jsonl"]
    typed += ["../../alice/x", "--out", "bench/results/x.json", "/home/alice/own"]
    monkeypatch.setattr("sys.argv", ["bench/order.py", *typed])
    words = shlex.split(provenance(())["command"])
    assert words[0] == "python"
    assert words[2:] == [
        *("--side", "a; ../b", "--data=set", "hellaswag=h.jsonl"),
        *("x", "--out", "bench/results/x.json", "own"),
    ]
