"""Continuations that share a row have the same losses as in rows of their own."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scoring.shared_context import (
    COLUMNS,
    SharedContext,
    make_batches,
    score_contexts,
    truncated_contexts,
)
from eval.subject import EvalOptions
from tests.eval_subjects import limit_memory, tiny_subject
from tests.launching import together

SUBJECT = tiny_subject()
IDS = st.integers(0, 300)
CONTEXTS = st.builds(
    SharedContext,
    st.lists(IDS, min_size=1, max_size=20),
    st.lists(st.lists(IDS, min_size=1, max_size=9), min_size=1, max_size=5).map(tuple),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(CONTEXTS, min_size=1, max_size=6), st.integers(1, 400))
def test_continuations_that_share_a_row_are_scored_as_if_alone(contexts, capacity):
    shared = score_contexts(SUBJECT, contexts, EvalOptions(tokens_per_batch=capacity))
    alone = [
        SharedContext(one.context, (tokens,)) for one in contexts for tokens in one.continuations
    ]
    np.testing.assert_allclose(shared, score_contexts(SUBJECT, alone, EvalOptions()), atol=2e-4)


def test_a_model_with_rotary_positions_scores_the_same():
    subject = tiny_subject(position="rope")
    one = SharedContext([1, 2, 3], ([4, 5], [6, 7, 8]))
    alone = [SharedContext([1, 2, 3], (tokens,)) for tokens in one.continuations]
    shared = score_contexts(subject, [one], EvalOptions())
    np.testing.assert_allclose(shared, score_contexts(subject, alone, EvalOptions()), atol=2e-4)


def test_a_row_may_exceed_the_context_length_if_no_continuation_does():
    continuations = tuple([i] * 30 for i in range(5))
    [one], truncated = truncated_contexts([7] * 18, continuations, 48)
    assert (one.length > 48, truncated) == (True, 0)
    alone = [SharedContext([7] * 18, (tokens,)) for tokens in continuations]
    shared = score_contexts(SUBJECT, [one], EvalOptions())
    np.testing.assert_allclose(shared, score_contexts(SUBJECT, alone, EvalOptions()), rtol=1e-4)


def test_continuations_that_do_not_fit_get_rows_with_a_shorter_context():
    contexts, truncated = truncated_contexts([1, 2, 3, 4], ([5], [6, 7, 8]), 5)
    assert [(list(t.context), list(t.continuations[0])) for t in contexts] == [
        ([1, 2, 3, 4], [5]),
        ([2, 3, 4], [6, 7, 8]),
    ]
    assert truncated == 1


def test_tokens_that_greedy_decoding_would_miss_are_counted():
    best = int(
        SUBJECT.model.masked_logits(SUBJECT.model.hidden(torch.tensor([[5]])))[0, 0].argmax()
    )
    found = score_contexts(SUBJECT, [SharedContext([5], ([best], [best + 1]))], EvalOptions())
    assert found[:, 1].tolist() == [0, 1]


def some_contexts() -> list[SharedContext]:
    return [SharedContext(list(range(1, 4 + i % 7)), ([9, i], [8], [i, i, 7])) for i in range(40)]


def test_out_of_memory_halves_the_batch_and_keeps_the_result(monkeypatch, caplog):
    whole = score_contexts(SUBJECT, some_contexts(), EvalOptions())
    passes = limit_memory(monkeypatch, SUBJECT.model, 100)
    with caplog.at_level(logging.WARNING):
        halved = score_contexts(SUBJECT, some_contexts(), EvalOptions(tokens_per_batch=500))
    np.testing.assert_allclose(halved, whole, atol=2e-4)
    failed = sum(tokens > 100 for tokens in passes)
    assert failed == caplog.text.count("out of memory: batches of at most") <= 3


def test_a_row_that_does_not_fit_alone_is_an_error_with_the_cure(monkeypatch):
    limit_memory(monkeypatch, SUBJECT.model, 1)
    with pytest.raises(ValueError, match="one row of 16 tokens does not fit the memory of cpu"):
        score_contexts(SUBJECT, some_contexts(), EvalOptions())


RANKS = """
import sys
import numpy as np
from dataclasses import replace
from eval.subject import EvalOptions
from eval.scoring.shared_context import score_contexts
from parallel.ranks import start, stop
from tests.eval.scoring.test_shared_context import SUBJECT, some_contexts
ranks = start("cpu")
options = EvalOptions(tokens_per_batch=64)
found = score_contexts(replace(SUBJECT, ranks=ranks), some_contexts(), options)
if ranks.is_main:
    np.save(sys.argv[1], found)
stop()
"""


@pytest.mark.slow
def test_two_ranks_give_the_same_bits_as_one(tmp_path):
    script = tmp_path / "score.py"
    script.write_text(RANKS)
    done = together(2, str(script), str(tmp_path / "two.npy"))
    assert done.returncode == 0, done.stderr
    alone = score_contexts(SUBJECT, some_contexts(), EvalOptions(tokens_per_batch=64))
    assert alone.shape == (120, COLUMNS)
    np.testing.assert_array_equal(np.load(tmp_path / "two.npy"), alone)


def test_batches_have_few_different_shapes():
    batches = make_batches([i % 200 + 1 for i in range(5000)], 2048)
    assert len({batch.shape for batch in batches}) <= 200 // 16 + 2
