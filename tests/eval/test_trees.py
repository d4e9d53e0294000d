"""Trees of endings in one row: the same losses as rows of their own, whatever happens to memory."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eval.scoring.shared_context
from eval.scoring.shared_context import (
    COLUMNS,
    SharedContext,
    make_batches,
    score_contexts,
    truncated_contexts,
)
from eval.subject import EvalOptions
from tests.eval_subjects import tiny_subject
from tests.launching import together

SUBJECT = tiny_subject()
IDS = st.integers(0, 300)
TREES = st.builds(
    SharedContext,
    st.lists(IDS, min_size=1, max_size=20),
    st.lists(st.lists(IDS, min_size=1, max_size=9), min_size=1, max_size=5).map(tuple),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(TREES, min_size=1, max_size=6), st.integers(1, 400))
def test_endings_that_share_a_row_are_scored_as_if_alone(trees, capacity):
    shared = score_contexts(SUBJECT, trees, EvalOptions(tokens_per_batch=capacity))
    alone = [
        SharedContext(tree.context, (branch,)) for tree in trees for branch in tree.continuations
    ]
    np.testing.assert_allclose(shared, score_contexts(SUBJECT, alone, EvalOptions()), atol=2e-4)


def test_rotary_positions_are_shared_too():
    subject = tiny_subject(position="rope")
    tree = SharedContext([1, 2, 3], ([4, 5], [6, 7, 8]))
    alone = [SharedContext([1, 2, 3], (branch,)) for branch in tree.continuations]
    shared = score_contexts(subject, [tree], EvalOptions())
    np.testing.assert_allclose(shared, score_contexts(subject, alone, EvalOptions()), atol=2e-4)


def test_a_tree_may_be_longer_than_the_context_if_no_branch_is():
    continuations = tuple([i] * 30 for i in range(5))
    [tree], truncated = truncated_contexts([7] * 18, continuations, 48)
    assert (tree.length > 48, truncated) == (True, 0)
    alone = [SharedContext([7] * 18, (branch,)) for branch in continuations]
    shared = score_contexts(SUBJECT, [tree], EvalOptions())
    np.testing.assert_allclose(shared, score_contexts(SUBJECT, alone, EvalOptions()), rtol=1e-4)


def test_branches_that_do_not_fit_get_trees_with_the_context_that_they_leave_room_for():
    trees, truncated = truncated_contexts([1, 2, 3, 4], ([5], [6, 7, 8]), 5)
    assert [(list(t.context), list(t.continuations[0])) for t in trees] == [
        ([1, 2, 3, 4], [5]),
        ([2, 3, 4], [6, 7, 8]),
    ]
    assert truncated == 1


def test_a_token_that_is_the_likeliest_is_told_from_one_that_is_not():
    best = int(
        SUBJECT.model.masked_logits(SUBJECT.model.hidden(torch.tensor([[5]])))[0, 0].argmax()
    )
    found = score_contexts(SUBJECT, [SharedContext([5], ([best], [best + 1]))], EvalOptions())
    assert found[:, 1].tolist() == [0, 1]


class SmallMemory:
    """Scores as usual, but only so many tokens at once."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.shapes = []
        self.real = eval.scoring.shared_context._score_batch

    def __call__(self, subject, trees, shape, dtype):
        self.shapes.append(shape)
        if shape[0] * shape[1] > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.real(subject, trees, shape, dtype)


def some_trees() -> list[SharedContext]:
    return [SharedContext(list(range(1, 4 + i % 7)), ([9, i], [8], [i, i, 7])) for i in range(40)]


def test_out_of_memory_halves_the_batch_and_the_answer_stays(monkeypatch, caplog):
    whole = score_contexts(SUBJECT, some_trees(), EvalOptions())
    memory = SmallMemory(100)
    monkeypatch.setattr("eval.scoring.shared_context._score_batch", memory)
    with caplog.at_level(logging.WARNING):
        halved = score_contexts(SUBJECT, some_trees(), EvalOptions(tokens_per_batch=500))
    np.testing.assert_allclose(halved, whole, atol=2e-4)
    failed = sum(r * length > 100 for r, length in memory.shapes)
    assert failed == caplog.text.count("out of memory: batches of at most") <= 3


def test_a_row_that_does_not_fit_alone_is_an_error_with_the_cure(monkeypatch):
    monkeypatch.setattr("eval.scoring.shared_context._score_batch", SmallMemory(1))
    with pytest.raises(ValueError, match="one row of 16 tokens does not fit the memory of cpu"):
        score_contexts(SUBJECT, some_trees(), EvalOptions())


RANKS = """
import sys
import numpy as np
from dataclasses import replace
from eval.subject import EvalOptions
from eval.scoring.shared_context import score_contexts
from parallel.ranks import start, stop
from tests.eval.test_trees import SUBJECT, some_trees
ranks = start("cpu")
options = EvalOptions(tokens_per_batch=64)
found = score_contexts(replace(SUBJECT, ranks=ranks), some_trees(), options)
if ranks.is_main:
    np.save(sys.argv[1], found)
stop()
"""


@pytest.mark.slow
def test_two_ranks_find_the_same_bits_as_one(tmp_path):
    script = tmp_path / "score.py"
    script.write_text(RANKS)
    done = together(2, str(script), str(tmp_path / "two.npy"))
    assert done.returncode == 0, done.stderr
    alone = score_contexts(SUBJECT, some_trees(), EvalOptions(tokens_per_batch=64))
    assert alone.shape == (120, COLUMNS)
    np.testing.assert_array_equal(np.load(tmp_path / "two.npy"), alone)


def test_lengths_have_few_shapes():
    batches = make_batches([i % 200 + 1 for i in range(5000)], 2048)
    assert len({batch.shape for batch in batches}) <= 200 // 16 + 2
