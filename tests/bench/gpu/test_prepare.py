"""Tests of bench/gpu/prepare.py: what a kit holds."""

import json
import lzma

import pytest

from bench.gpu import prepare
from bench.gpu.prepare import Arguments, pack
from data_prep.dataset.shards import open_data_set
from tests.golden.make import INPUTS
from tests.launching import python

ITEMS = '{"a": 1}\n{"a": 2}\n'


@pytest.fixture
def commands(monkeypatch):
    """The commands that packing starts: its own script in a fork, pip not at all."""
    started = []

    def run(_what, words):
        started.append(words)
        if "pip" not in words:
            done = python(*words[1:], "--workers", "1", "--encoder", "tiktoken")
            assert done.returncode == 0, done.stderr

    monkeypatch.setattr(prepare, "_run", run)
    monkeypatch.setattr(prepare, "_LEAST_VALIDATION", 100)
    return started


def test_a_kit_holds_data_items_wheels_and_what_they_are(commands, tmp_path):
    items = tmp_path / "items.jsonl"
    items.write_text(ITEMS)
    text = (INPUTS / "stories.txt",)
    kit = pack(Arguments(text, items, val_tokens=200, python="3.13", out=tmp_path / "kit"))
    assert open_data_set(tmp_path / "kit" / "data").split("val").tokens == kit["tokens"]["val"]
    packed = (tmp_path / "kit" / "hellaswag_val.jsonl.xz").read_bytes()
    assert lzma.decompress(packed).decode() == ITEMS
    assert kit["hellaswag_items"] == 2
    assert json.loads((tmp_path / "kit" / "kit.json").read_text()) == kit
    (pip,) = [words for words in commands if "pip" in words]
    assert pip[pip.index("--python-version") + 1] == "3.13"
    assert {"--no-deps", "--only-binary=:all:", "tyro"} <= set(pip)


def test_damaged_items_are_refused_and_nothing_is_left(commands, tmp_path):
    items = tmp_path / "items.jsonl.xz"
    items.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read"):
        pack(Arguments((INPUTS / "stories.txt",), items, val_tokens=200, out=tmp_path / "kit"))
    assert list(tmp_path.iterdir()) == [items]


def test_a_kit_that_is_too_large_is_refused_and_nothing_is_left(commands, tmp_path):
    text = (INPUTS / "stories.txt",)
    with pytest.raises(ValueError, match="more than 1; give a smaller --max-documents"):
        pack(Arguments(text, val_tokens=200, most_mib=1, out=tmp_path / "kit"))
    assert list(tmp_path.iterdir()) == []


def test_too_little_validation_is_refused(commands, tmp_path, monkeypatch):
    arguments = Arguments((INPUTS / "stories.txt",), val_tokens=200, out=tmp_path / "kit")
    monkeypatch.setattr(prepare, "_LEAST_VALIDATION", 10**6)
    with pytest.raises(ValueError, match="1000000 are read; give more text"):
        pack(arguments)
    assert list(tmp_path.iterdir()) == []
