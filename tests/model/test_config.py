"""Impossible shapes are refused."""

import pytest

from model.config import GPTConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_head": 5}, "n_embd=768 is not a multiple of n_head=5; try n_embd=765"),
        ({"n_layer": 0}, "n_layer=0 is not a size"),
        ({"n_embd": 12, "n_head": 4, "position": "rope"}, "n_embd/n_head=3 is odd"),
        ({"logit_softcap": 0}, "logit_softcap=0 is not from 0.1 to 1000; use a number such as 15"),
        ({"logit_softcap": -15.0}, "logit_softcap=-15.0 is not from 0.1 to 1000"),
        ({"logit_softcap": 1e-46}, "logit_softcap=1e-46 is not from 0.1 to 1000"),
        ({"logit_softcap": float("nan")}, "logit_softcap=nan is not from 0.1 to 1000"),
        ({"logit_softcap": float("inf")}, "logit_softcap=inf is not from 0.1 to 1000"),
        ({"logit_softcap": "15"}, "logit_softcap='15' is not a number; use one such as 15, or"),
        ({"logit_softcap": True}, "logit_softcap=True is not a number"),
        ({"logit_softcap": [15]}, "logit_softcap=\\[15\\] is not a number"),
        ({"qk_norm": 1}, "qk_norm=1 is not known; use True or False"),
        ({"norm_weight": "no"}, "norm_weight='no' is not known; use True or False"),
        ({"shortcuts": None}, "shortcuts=None is not known; use True or False"),
        ({"mlp": "relu"}, "mlp='relu' is not known; use gelu or swiglu or relu2"),
        ({"initial_weights": "zero"}, "initial_weights='zero' is not known; use gpt2 or zero_out"),
    ],
)
def test_impossible_shapes_are_refused_with_the_cure(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**fields)


@pytest.mark.parametrize("cap", [15, 15.0, 0.1, 1000.0, None])
def test_a_soft_cap_may_be_a_whole_number_or_none(cap):
    assert GPTConfig(logit_softcap=cap).logit_softcap == cap
