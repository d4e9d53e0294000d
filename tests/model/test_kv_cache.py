"""The KV cache: rows of unequal length, moved and dropped, compared with no cache."""

import pytest
import torch

from tests.eval_subjects import TINY_MODERN, tiny_model

IDS = torch.randint(50257, (3, 20), generator=torch.Generator().manual_seed(1))
LLAMA = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False}
SHAPES = [{}, LLAMA, TINY_MODERN, {**TINY_MODERN, "n_layer": 3, "shortcuts": True}]


def ragged(model, lengths):
    """A cache whose rows hold the first tokens of the rows of IDS."""
    cache = model.new_cache(len(lengths), 20)
    for row, length in enumerate(lengths):
        alone = model.new_cache(1, length)
        model.hidden(IDS[row : row + 1, :length], cache=alone)
        cache.copy_row(row, alone, 0)
    return cache


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 4])
def test_rows_of_unequal_length_continue_as_if_alone(shape, tokens):
    model, lengths = tiny_model(**shape).eval(), [3, 11, 7]
    cache = ragged(model, lengths)
    for begin in range(0, 8, tokens):
        new = [
            IDS[row, length + begin : length + begin + tokens] for row, length in enumerate(lengths)
        ]
        hidden = model.hidden(torch.stack(new), cache=cache)
        for row, length in enumerate(lengths):
            whole = model.hidden(IDS[row : row + 1, : length + begin + tokens])
            torch.testing.assert_close(hidden[row], whole[0, -tokens:], atol=1e-5, rtol=1e-4)
    assert cache.lengths == [11, 19, 15]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_several_tokens_after_cached_ones_are_causal(shape):
    model = tiny_model(**shape).eval()
    cache = model.new_cache(3, 20)
    parts = [model.hidden(part, cache=cache) for part in IDS.split([5, 4, 1, 10], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model.hidden(IDS), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_after_a_row_is_dropped_the_last_one_takes_its_place(dropped):
    model, lengths = tiny_model().eval(), [3, 11, 7]
    cache = ragged(model, lengths)
    cache.drop(dropped)
    rows = [0, 1, 2]
    rows[dropped] = rows[-1]
    rows.pop()
    assert cache.lengths == [lengths[row] for row in rows]
    hidden = model.hidden(
        torch.stack([IDS[r, lengths[r] : lengths[r] + 1] for r in rows]), cache=cache
    )
    for place, row in enumerate(rows):
        whole = model.hidden(IDS[row : row + 1, : lengths[row] + 1])
        torch.testing.assert_close(hidden[place], whole[0, -1:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_old_tokens_of_a_shortened_row_are_ignored():
    model = tiny_model().eval()
    cache, fresh = ragged(model, [12, 12, 12]), ragged(model, [4, 12, 12])
    cache.copy_row(0, fresh, 0)
    one = model.hidden(IDS[:, 12:13], cache=cache)
    assert torch.equal(one, model.hidden(IDS[:, 12:13], cache=fresh))


def test_a_full_cache_refuses_another_token():
    model = tiny_model()
    cache = model.new_cache(1, 5)
    model.hidden(IDS[:1, :4], cache=cache)
    with pytest.raises(ValueError, match="6 tokens do not fit a cache of 5"):
        model.hidden(IDS[:1, 4:6], cache=cache)
    with pytest.raises(ValueError, match="49 tokens are more than context_length=48"):
        model.hidden(torch.zeros(1, 49, dtype=torch.long), cache=model.new_cache(1, 60))


def test_a_cache_has_the_requested_dtype():
    model = tiny_model()
    assert model.new_cache(2, 5).keys.dtype == torch.float32
    assert model.new_cache(2, 5, torch.bfloat16).values.dtype == torch.bfloat16


@torch.no_grad()
def test_cached_keys_are_rotated_and_normalised():
    model = tiny_model(**TINY_MODERN)
    cache = model.new_cache(3, 20)
    model.hidden(IDS, cache=cache)
    torch.testing.assert_close(
        cache.keys.square().mean(-1), torch.ones(2, 3, 2, 20), atol=1e-3, rtol=0
    )
    at_once = cache.keys.clone()
    cache = model.new_cache(3, 20)
    for part in IDS.split([7, 1, 12], dim=1):
        model.hidden(part, cache=cache)
    torch.testing.assert_close(cache.keys, at_once, atol=1e-5, rtol=1e-4)
