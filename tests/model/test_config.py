"""Impossible shapes are refused."""

import pytest

from model.config import GPTConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_head": 5}, "n_embd=768 is not a multiple of n_head=5; try n_embd=765"),
        ({"n_layer": 0}, "n_layer=0 is not a size"),
        ({"n_embd": 12, "n_head": 4, "position": "rope"}, "n_embd/n_head=3 is odd"),
    ],
)
def test_impossible_shapes_are_refused_with_the_cure(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**fields)
