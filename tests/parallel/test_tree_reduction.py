"""Sums in a tree: the same bits however a step's micro-batches are split over ranks."""

import json
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.estimates.reduction_memory import sums_apart
from parallel.ranks import Ranks
from parallel.tree_reduction import TreeReduction, exchanges, odd_part, tree_sum
from tests.launching import together


def terms_of(micro_batches, size, seed):
    """One gradient for each micro-batch, of very different scales, so that every order counts."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randint(-12, 12, (micro_batches, size), generator=generator)
    return torch.randn((micro_batches, size), generator=generator) * 2.0**scales


def in_tree(terms):
    """The definition, written down once more: runs from left to right, then halves."""
    runs = [list(run) for run in terms.split(odd_part(len(terms)))]
    sums = [sum(run[1:], start=run[0]) for run in runs]

    def halves(part):
        if len(part) == 1:
            return part[0]
        middle = len(part) // 2
        return halves(part[:middle]) + halves(part[middle:])

    return halves(sums)


class Given(nn.Module):
    """A module whose gradient is what it is given, and whose loss is 0."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, gradient):
        return (self.weight * gradient).sum()


def rank_sum(terms, rank, world_size):
    """What one rank's own micro-batches add up to, by the backward passes of a real step."""
    module = Given(terms.shape[1])
    own = len(terms) // world_size
    reduction = TreeReduction(module, Ranks(0, 1, 0, 1, torch.device("cpu")))
    reduction.begin(own)
    for number, term in enumerate(terms[rank * own : (rank + 1) * own]):
        with reduction.micro_step(number):
            loss = module(term)
            loss.backward()
        reduction.add(loss.detach())
    return module.weight.grad


def exchanged(sums):
    """What the ranks hold after their exchanges, made here in lockstep without any process."""
    flats = [part.clone() for part in sums]
    size = len(flats[0]) // 2 + 16
    ways = [exchanges(flat, r, len(flats), torch.empty(size)) for r, flat in enumerate(flats)]
    while stage := [exchange for way in ways if (exchange := next(way, None)) is not None]:
        sent = [exchange.sent.clone() for exchange in stage]
        for exchange in stage:
            exchange.received.copy_(sent[exchange.partner])
    return flats


@settings(max_examples=15, deadline=None)
@given(
    odd=st.sampled_from([1, 3, 5]),
    power=st.integers(0, 5),
    size=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_any_power_of_two_of_ranks_sums_to_the_bits_of_the_definition(odd, power, size, seed):
    terms = terms_of(odd << power, size, seed)
    wanted = in_tree(terms)
    for stage in range(min(power, 4) + 1):
        world_size = 1 << stage
        held = exchanged([rank_sum(terms, rank, world_size) for rank in range(world_size)])
        assert all(torch.equal(flat, wanted) for flat in held), world_size


def test_the_order_matters_and_the_tree_is_at_least_as_exact_as_left_to_right():
    terms = terms_of(64, 4000, 1)
    exact = [float(sum(map(Fraction, column.tolist()))) for column in terms.unbind(1)[:200]]
    straight = sum(terms[1:], start=terms[0])
    tree = in_tree(terms)
    assert not torch.equal(tree, straight)
    errors = [(got[:200].double() - torch.tensor(exact)).abs().mean() for got in (tree, straight)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 8, 20])
def test_losses_are_summed_in_the_same_tree(count):
    terms = terms_of(count, 1, 3).double()
    assert torch.equal(tree_sum(terms[:, 0]), in_tree(terms)[0])


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Where one and four ranks have written what their steps gave."""
    folder = tmp_path_factory.mktemp("steps")
    for ranks in (1, 4):
        done = together(ranks, "tests/programs/tree_steps.py", str(folder / f"{ranks}"))
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_steps_of_four_ranks_end_with_the_bits_of_one(steps):
    one, *four = (json.loads((steps / name).read_text()) for name in ("1.0", "4.0", "4.3"))
    assert four == [one, one]
    assert len(set(one.values())) == len(one)


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 6, 7, 8, 12, 16])
def test_as_many_sums_wait_as_the_cost_model_counts(micro_batches):
    module = Given(1)
    reduction = TreeReduction(module, Ranks(0, 1, 0, 1, torch.device("cpu")))
    reduction.begin(micro_batches)
    waiting = []
    for _ in range(micro_batches):
        loss = module(torch.ones(1))
        loss.backward()
        reduction.add(loss.detach())
        waiting.append(len(reduction._subtrees))
    assert max(waiting) == sums_apart(micro_batches)


def test_a_rank_that_does_not_answer_in_an_exchange_is_a_peer_failure_in_time(steps):
    said = (steps / "4.silent").read_text()
    assert said.startswith("True: ")
    assert "Timed out waiting 200ms" in said
