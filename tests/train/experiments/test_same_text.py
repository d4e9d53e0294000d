"""Losses compare per token of the same tokens, or per byte of the same text."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.made_runs import made_run
from train.experiments.same_text import check_same_horizon, unit_of
from train.reporting.run_summary import summarize_run

NATS, BITS = "nats per token", "bits per byte"


@pytest.fixture
def run(tmp_path):
    """A run with 4 / ln 2 bytes of text a token: its bits are a quarter of its nats."""
    return summarize_run(made_run(tmp_path / "run"), "run")


@pytest.fixture
def manifests(monkeypatch):
    """What the data folders hold: one source in two tokenizers, and another source."""
    source = SimpleNamespace(files=("a.txt",))
    known = {
        "data": manifest("f" * 64, source, bytes_of_token=4),
        "half": manifest("h" * 64, source, bytes_of_token=2),
        "other": manifest("o" * 64, SimpleNamespace(files=("b.txt",)), bytes_of_token=4),
    }
    monkeypatch.setattr("train.experiments.same_text.read_manifest", lambda path: known[str(path)])
    return known


def manifest(fingerprint, source, bytes_of_token):
    train = SimpleNamespace(tokens=1000, text_bytes=1000 * bytes_of_token)
    return SimpleNamespace(fingerprint=fingerprint, source=source, split_rule={}, train=train)


def on(run, data, manifests, **changes):
    return replace(run, data=data, data_fingerprint=manifests[data].fingerprint, **changes)


def in_halves(run, manifests, **changes):
    """The same text in twice as many tokens, each of half the loss."""
    half = {"val_tokens": 2 * run.val_tokens, "last_val_loss": run.last_val_loss / 2}
    return on(run, "half", manifests, **half | {"steps": 2 * run.steps} | changes)


def test_the_same_tokens_are_compared_per_token(run):
    assert unit_of([run, run]) == (NATS, [])
    assert unit_of([run, replace(run, context_length=8)])[0] == NATS


def test_a_run_validated_within_documents_is_said_to_have_other_contexts(run):
    masked = replace(run, settings=run.settings | {"mask_documents": True})
    assert unit_of([masked, masked]) == (NATS, [])
    unit, (note,) = unit_of([run, masked])
    assert unit == NATS
    assert "within documents (--mask-documents)" in note


def test_the_same_text_in_other_tokens_is_compared_per_byte(run, manifests):
    a = on(run, "data", manifests)
    unit, notes = unit_of([a, in_halves(run, manifests)])
    assert unit == BITS
    assert "64 and 128" in notes[0]


@pytest.mark.parametrize("bytes_more", [1.005, 0.995])
def test_whole_windows_may_differ_by_a_hundredth(run, manifests, bytes_more):
    other = in_halves(run, manifests, last_val_loss=run.last_val_loss / 2 * bytes_more)
    assert unit_of([on(run, "data", manifests), other])[0] == BITS


def test_more_of_the_text_or_other_text_is_refused(run, manifests):
    a = on(run, "data", manifests)
    with pytest.raises(ValueError, match="other parts of the same text"):
        unit_of([a, in_halves(run, manifests, val_tokens=64)])
    with pytest.raises(ValueError, match=r"different text \(data, f{16} and other, o{16}\)"):
        unit_of([a, on(run, "other", manifests)])
    with pytest.raises(ValueError, match="hold other data now"):
        unit_of([a, replace(in_halves(run, manifests), data_fingerprint="x" * 64)])


def test_the_horizon_of_other_tokens_is_counted_in_bytes(run, manifests):
    a = on(run, "data", manifests)
    check_same_horizon(a, in_halves(run, manifests), BITS)
    with pytest.raises(ValueError, match=r"A trains on 20,480 bytes of text .* B on 10,240"):
        check_same_horizon(a, in_halves(run, manifests, steps=run.steps), BITS)
