"""Batched multiple choice, compared with one ending at a time in float64."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scoring.multiple_choice import Item, Scores, encode_together, score_items
from eval.scoring.shared_context import LENGTH_MULTIPLE, make_batches
from eval.subject import EvalOptions
from eval.tasks.hellaswag import items_from_file
from eval.tasks.pydoc_choice import ITEMS_FILE, pydoc_choice
from tests.eval_subjects import tiny_subject

SUBJECT = tiny_subject()
PRECISE = deepcopy(SUBJECT.model).double()
SHORT = [
    Item("The sky over the harbour", ("is blue.", "is a list of integers."), 0),
    Item("She", ("opened the door and went in, humming a tune.", "ran.", "slept."), 1),
]


def naive(context: str, ending: str) -> tuple[float, int]:
    """Summed loss and number of tokens of an ending, without batches or padding."""
    before = SUBJECT.tokenizer.encode(context) or [SUBJECT.tokenizer.end_of_text]
    after = SUBJECT.tokenizer.encode(" " + ending)
    ids = (before + after)[-SUBJECT.model.config.context_length - 1 :]
    logits = PRECISE(torch.tensor([ids[:-1]]))[0]
    logits[:, SUBJECT.model.config.vocab_size :] = -math.inf
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    return losses[-len(after) :].sum().item(), len(after)


def test_batched_scores_equal_naive_ones():
    items = items_from_file(ITEMS_FILE)[:12]
    scores = score_items(SUBJECT, items, EvalOptions(tokens_per_batch=300))
    wanted = [[naive(item.context, ending) for ending in item.endings] for item in items]
    np.testing.assert_allclose(scores.sums, np.array(wanted)[:, :, 0], rtol=1e-5)
    np.testing.assert_array_equal(scores.tokens, np.array(wanted)[:, :, 1])
    np.testing.assert_allclose(scores.means, scores.sums / scores.tokens)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 700), st.permutations(range(8)))
def test_neither_padding_nor_neighbours_change_a_score(tokens_per_batch, order):
    items = items_from_file(ITEMS_FILE)[:8]
    alone = np.concatenate([score_items(SUBJECT, [i], EvalOptions()).sums for i in items])
    mixed = [items[i] for i in order]
    sums = score_items(SUBJECT, mixed, EvalOptions(tokens_per_batch=tokens_per_batch)).sums
    np.testing.assert_allclose(sums, alone[list(order)], rtol=1e-5)


@given(st.lists(st.integers(1, 150), min_size=1, max_size=60), st.integers(1, 4096))
def test_every_row_is_in_exactly_one_batch_and_fits_it(lengths, capacity):
    batches = make_batches(lengths, capacity)
    assert sorted(row for batch in batches for row in batch.contexts) == list(range(len(lengths)))
    for batch in batches:
        count, padded = batch.shape
        assert len(batch.contexts) == count <= max(1, capacity // padded)
        assert padded % LENGTH_MULTIPLE == 0
        assert max(lengths[row] for row in batch.contexts) <= padded


def test_items_may_have_different_numbers_of_endings():
    scores = score_items(SUBJECT, SHORT, EvalOptions())
    assert scores.sums.shape == (2, 3)
    assert np.isinf(scores.sums[0, 2])
    assert scores.sums[1, 1] == pytest.approx(naive("She", "ran.")[0], rel=1e-5)


def test_accuracy_uses_the_smallest_sum_and_the_smallest_mean():
    sums = np.array([[4.0, 9.0], [5.0, 2.0], [1.0, 3.0]])
    tokens = np.array([[2, 9], [1, 1], [1, 1]])
    items = tuple(Item("a", ("b", "c"), 0) for _ in range(3))
    result = Scores(items, sums, tokens, 0).result("toy")
    tags = result.tags
    assert result.items["toy"].predictions["acc"].tolist() == [0, 1, 0]
    assert tags["toy/acc"] == pytest.approx(2 / 3)
    assert tags["toy/acc_norm"] == pytest.approx(1 / 3)
    assert tags["toy/acc_stderr"] == pytest.approx(np.std([1, 0, 1], ddof=1) / math.sqrt(3))
    assert set(tags) == {f"toy/{t}{e}" for t in ("acc", "acc_norm") for e in ("", "_stderr")}


def test_a_long_context_is_cut_from_the_left_and_counted():
    item = Item("one two three four five " * 12, ("six.", "seven eight."), 0)
    scores = score_items(SUBJECT, [item], EvalOptions())
    assert scores.truncated_rows == 2
    assert scores.result("toy").tags["toy/truncated_rows"] == 2.0
    assert scores.sums[0, 1] == pytest.approx(naive(item.context, item.endings[1])[0], rel=1e-5)


def test_an_empty_context_is_the_start_of_a_document():
    scores = score_items(SUBJECT, [Item("", ("Once upon", "A time"), 0)], EvalOptions())
    assert scores.sums[0, 0] == pytest.approx(naive("", "Once upon")[0], rel=1e-5)


@pytest.mark.parametrize("ending", ["", "  ", "word " * 60])
def test_an_item_whose_ending_has_no_tokens_or_too_many_is_left_out(ending):
    items = [SHORT[0], Item("A", ("b", ending), 0), SHORT[1]]
    found, wanted = (score_items(SUBJECT, some, EvalOptions()) for some in (items, SHORT))
    np.testing.assert_array_equal(found.sums, wanted.sums)
    assert found.items == wanted.items
    assert list(found.left_out) == [1]
    assert "ending 1 has" in found.left_out[1]
    assert "1 to 48 (the model's context_length)" in found.left_out[1]


def test_items_of_which_none_fits_are_an_error():
    with pytest.raises(ValueError, match="no item can be scored; item 0: ending 1 has 0 tokens"):
        score_items(SUBJECT, [Item("A", ("b", ""), 0)], EvalOptions())


def test_an_ending_that_joins_the_context_inside_a_token_is_tokenised_apart():
    context, [ending] = encode_together(SUBJECT.tokenizer, "hello wor", ["ld"])
    assert SUBJECT.tokenizer.to_bytes(context + ending) == b"hello world"
    assert ending


def test_logits_that_are_not_finite_are_an_error():
    subject = tiny_subject()
    torch.nn.init.constant_(subject.model.ln_f.weight, math.nan)
    with pytest.raises(ValueError, match="loss of item 0 is nan, like that of 5 of 5 endings"):
        score_items(subject, SHORT, EvalOptions())


def test_a_label_without_an_ending_is_refused():
    with pytest.raises(ValueError, match="label 2 is not one of 2 endings"):
        Item("A", ("b", "c"), 2)


def test_padding_rows_of_the_vocabulary_never_change_a_score():
    before = score_items(SUBJECT, SHORT, EvalOptions()).sums
    loud = tiny_subject()
    with torch.no_grad():
        loud.model.wte.weight[loud.model.config.vocab_size :] = 50.0
    np.testing.assert_array_equal(score_items(loud, SHORT, EvalOptions()).sums, before)


def test_the_items_of_pydoc_choice_are_balanced_with_endings_of_similar_length():
    items = items_from_file(ITEMS_FILE)
    assert len(items) >= 40
    assert np.bincount([item.label for item in items]).tolist() == [len(items) // 4] * 4
    for item in items:
        lengths = sorted(map(len, item.endings))
        assert len(set(item.endings)) == 4
        assert lengths[-1] <= 1.6 * lengths[0]


def test_with_items_only_the_first_ones_are_scored():
    tags = pydoc_choice(SUBJECT, EvalOptions(items=10)).tags
    assert tags["pydoc_choice/acc"] * 10 == pytest.approx(round(tags["pydoc_choice/acc"] * 10))
    first = score_items(SUBJECT, items_from_file(ITEMS_FILE)[:10], EvalOptions())
    assert tags == first.result("pydoc_choice").tags


def test_space_at_the_end_of_a_harness_context_belongs_to_the_endings():
    encode = SUBJECT.tokenizer.encode
    context, [ending] = encode_together(SUBJECT.tokenizer, "It says  ", [" so."])
    assert (context, ending) == (encode("It says"), encode("It says   so.")[2:])
    context, [ending] = encode_together(SUBJECT.tokenizer, "", [" so."])
    assert (context, ending) == ([SUBJECT.tokenizer.end_of_text], encode(" so."))


def test_an_ending_without_characters_is_never_chosen_by_its_length():
    item = Item("He", ("", "went away."), 1, harness=True)
    scores = score_items(SUBJECT, [item], EvalOptions())
    assert np.isinf(scores.means[0, 0])
    assert np.isfinite(scores.sums).all()
