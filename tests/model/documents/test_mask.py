"""Attention within documents by a mask: each is computed as if it were alone."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from model.blocks import attention_backend
from model.documents.mask import document_mask, document_positions
from model.gpt import GPT
from model.shapes import SHAPES

END = 7  # opens a document
SIZES = {"n_layer": 3, "n_head": 2, "n_embd": 32, "context_length": 24, "vocab_size": 60}
CPU = torch.device("cpu")
SHAPES_OF = {
    "gpt2": replace(SHAPES["gpt2"], **SIZES),
    "gpt2-rope-swiglu": replace(SHAPES["gpt2"], **SIZES, position="rope", mlp="swiglu"),
    "modern": replace(SHAPES["modern"], **SIZES),
    "modern-learned": replace(SHAPES["modern"], **SIZES, position="learned"),
    "modern-shortcuts": replace(SHAPES["modern"], **SIZES, shortcuts=True),
}
# Windows of 24 tokens in which documents begin at these places: the first window begins inside one,
# the second has one document of one token, the third only documents of one token.
STARTS = [[5, 6, 20], [0, 23], list(range(24))]


def windows():
    """Windows of random ids whose documents begin at STARTS, and the target behind the last."""
    ids = torch.randint(8, 60, (3, 25), generator=torch.Generator().manual_seed(3))
    for row, starts in zip(ids, STARTS, strict=True):
        row[starts] = END
    return ids[:, :-1], ids[:, 1:]


def started(shape):
    """A network in float64 whose every parameter counts."""
    model = GPT(shape).double()
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return model


def losses_and_gradients(model, states, targets):
    losses = F.cross_entropy(model.head(states).flatten(0, -2).double(), targets.flatten())
    return losses, torch.autograd.grad(losses, list(model.parameters()))


@pytest.mark.parametrize("name", SHAPES_OF)
def test_a_window_is_its_documents_computed_alone_from_position_0(name):
    model = started(SHAPES_OF[name])
    ids, targets = windows()
    together = model.hidden(ids, separator=END)
    alone = []
    for row, starts in zip(ids, STARTS, strict=True):
        ends = [*sorted({0, *starts}), len(row)]
        pieces = [row[a:b] for a, b in pairwise(ends)]
        alone.append(torch.cat([model.hidden(piece[None])[0] for piece in pieces]))
    apart = torch.stack(alone)
    torch.testing.assert_close(together, apart, atol=1e-9, rtol=1e-7)
    found, wanted = (losses_and_gradients(model, each, targets) for each in (together, apart))
    for ours, theirs in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)
    assert not torch.allclose(together, model.hidden(ids))


def test_positions_restart_where_a_document_begins():
    ids, _ = windows()
    positions = document_positions(ids, END)
    assert positions[0].tolist() == [*range(5), 0, *range(14), *range(4)]
    assert positions[1].tolist() == [*range(23), 0]
    assert positions[2].tolist() == [0] * 24


def test_without_a_beginning_the_numbers_are_those_without_the_option():
    model = started(SHAPES_OF["modern"])
    ids = torch.arange(8, 32)[None]
    torch.testing.assert_close(model.hidden(ids, separator=END), model.hidden(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_mask_leaves_no_nan_in_the_kernel_of_the_cpu(dtype):
    # Whole blocks of the kernel are minus infinity for the tokens of later documents.
    q = torch.randn(1, 2, 1100, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    q.requires_grad_()
    ids = torch.full((1, 1100), 9)
    ids[0, 1000] = END
    mask = document_mask(document_positions(ids, END), dtype)
    y = F.scaled_dot_product_attention(q, q, q, mask)
    last = q[:, :, 1000:]
    alone = F.scaled_dot_product_attention(last, last, last, is_causal=True)
    atol = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y[:, :, 1000:], alone, atol=atol, rtol=1e-2)
    assert torch.autograd.grad(y.float().sum(), q)[0].isfinite().all()


def test_more_tokens_than_the_context_are_refused_as_without():
    with pytest.raises(ValueError, match="25 tokens are more than context_length=24"):
        GPT(SHAPES_OF["gpt2"]).hidden(torch.ones(1, 25, dtype=torch.long), separator=END)


def test_the_kernel_of_attention_with_a_mask_is_named():
    named = attention_backend(SHAPES_OF["gpt2"], CPU, torch.float32, masked=True)
    assert named in ("flash", "math")
