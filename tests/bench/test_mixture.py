"""What a mixture costs is measured on the loader, and the shares of a run are drawn."""

import json
from dataclasses import replace

import pytest

from bench import mixture
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.runs import NANO, run_to_end, tiny_config


def test_a_toy_mixture_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mixture, "_T", 16)
    monkeypatch.setattr(mixture, "_WINDOWS", 32)
    out = tmp_path / "found.json"
    sizes = ("--documents=200", "--file-tokens=200000", "--rounds=2", "--steps=2")
    monkeypatch.setattr("sys.argv", ["bench/mixture.py", *sizes, f"--out={out}"])
    mixture.main()
    found = json.loads(out.read_text())
    assert [len(seconds) for seconds in found["cpu_seconds"].values()] == [4, 4]
    assert "three sources / one, CPU time of a token:" in capsys.readouterr().out


def test_the_shares_of_a_run_are_drawn(tmp_path, monkeypatch, capsys):
    folders = [
        tiny_data_set(tmp_path / name, 30, seed, tokenizer=small_tokenizer()).folder
        for seed, name in enumerate("ab")
    ]
    data = tuple(folder.with_name(f"{folder.name}:1") for folder in folders)
    changes = {"data": data, "data_weights_at": ("4", "1", "3"), "model": NANO}
    config = replace(tiny_config(tmp_path, tmp_path / "run"), **changes)
    run_to_end(config)
    out = tmp_path / "shares.png"
    monkeypatch.setattr("sys.argv", ["bench/mixture.py", f"--run={config.out}", f"--out={out}"])
    mixture.main()
    assert out.stat().st_size > 10_000
    assert "8 steps of 2 sources" in capsys.readouterr().out


def test_a_run_on_one_data_set_has_no_shares(tmp_path):
    with pytest.raises(
        ValueError, match="has no step of a mixture; name the folder of a run on several"
    ):
        mixture._draw(tmp_path, tmp_path / "x.png")
