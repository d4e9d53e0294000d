"""What attention within documents computes: tokens attended to, counted and calculated."""

import numpy as np
import pytest
import torch

from model.documents.mask import document_positions
from model.estimates.documents import (
    attended_tokens,
    attended_tokens_of_mean,
    document_flops_per_token,
)
from model.estimates.flops import causal_flops_per_token
from model.shapes import SHAPES

RANDOM = np.random.default_rng(2)


@pytest.mark.parametrize("lengths", [[1], [3, 5, 1], [40], RANDOM.integers(1, 30, 50)])
def test_the_mean_over_lengths_is_that_of_all_windows_of_the_stream(lengths):
    T, lengths = 7, np.array(lengths, np.uint32)
    ids = np.concatenate([[0] + [1] * (int(length) - 1) for length in lengths])
    stream = torch.from_numpy(np.tile(ids, 2 * T))
    # A window of every place of the stream: each token is at every place of a window once.
    windows = stream.unfold(0, T, 1)[: len(ids)]
    counted = (document_positions(windows, 0) + 1).double().mean().item()
    assert attended_tokens(T, lengths) == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("mean", [1, 2, 50, 3000])
def test_the_mean_length_alone_gives_that_of_documents_which_end_by_chance(mean):
    lengths = RANDOM.geometric(1 / mean, 200_000)
    assert attended_tokens_of_mean(64, mean) == pytest.approx(
        attended_tokens(64, lengths), rel=5e-3
    )


def test_without_a_document_that_ends_the_flops_are_the_causal_ones():
    shape = SHAPES["gpt2"]
    attended = attended_tokens_of_mean(1024, 10**15)
    assert attended == pytest.approx(512.5)
    assert document_flops_per_token(shape, 512) == causal_flops_per_token(shape)
    assert document_flops_per_token(shape, 1) < 0.95 * causal_flops_per_token(shape)
