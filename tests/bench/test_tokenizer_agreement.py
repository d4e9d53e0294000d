"""Tests of bench/tokenizer_agreement.py: its comparison with the libraries."""

import pytest

from bench.tokenizer_agreement import compare, documents, table_of
from tests.tokenizer_families import family


@pytest.mark.parametrize("kind", ["qwen2", "smollm"])
def test_every_encoder_has_the_librarys_ids(kind, tmp_path):
    (tmp_path / "a.txt").write_text("The quick brown fox. " * 50)
    texts = documents((str(tmp_path / "a.txt"),), 300)
    assert sum(map(len, texts)) == 300
    found = compare(family(kind, tmp_path / "theirs"), texts, repeats=1)
    assert set(found["differing"].values()) == {0}
    assert found["compared"]["ours, the reference"] == found["texts"] == 9
    lines = table_of([found]).splitlines()
    assert len(lines) == 2 + len(found["compared"])
    assert lines[2].startswith("| theirs | 70")


def test_other_ids_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "bench.tokenizer_agreement.library_of", lambda path, tokenizer: ("x", lambda text: [1])
    )
    found = compare(family("smollm", tmp_path), ["a"], repeats=1)
    assert found["differing"]["ours, the reference"] == found["texts"]
