"""Gradients of two ranks: mean, mean in bfloat16, and a backward pass cut at the buckets."""

import json

import pytest

from tests.launching import together

# On every rank: gradients of its own windows, their mean in float64, and what DDP makes of them.
REPLICAS = """
import hashlib, json, sys
from pathlib import Path
import torch
from torch._dynamo.backends.debugging import aot_eager
from model.gpt import GPT
from model.config import GPTConfig
from model.loss import NextTokenLoss
from parallel.data_parallel import replicate
from parallel.collectives import all_gather_object
from parallel.ranks import start, stop

me = start("cpu")
model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=256, context_length=8, vocab_size=500))
model.initialise(1)
pieces = []

def counted(graph, inputs):
    pieces.append(graph)
    return aot_eager(graph, inputs)

def windows(rank):
    ids = torch.randint(0, 500, (2, 9), generator=torch.Generator().manual_seed(rank))
    return ids[:, :-1], ids[:, 1:]

def gradients(module, rank):
    model.zero_grad(set_to_none=True)
    module(*windows(rank)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])

plain = NextTokenLoss(model)
parts = [gradients(plain, rank).double() for rank in range(2)]
exact, largest = sum(parts) / 2, sum(part.abs() for part in parts) / 2
found = {}
compiled = torch.compile(plain, backend=counted, dynamic=False)
gradients(compiled, 0)  # as the search for a micro-batch does, before DDP wraps the module
found["pieces outside"] = len(pieces)
ways = {"none": (plain, "none"), "bfloat16": (plain, "bfloat16"), "compiled": (compiled, "none")}
for name, (module, compression) in ways.items():
    pieces.clear()
    got = gradients(replicate(module, me, compression), me.rank)
    sums = all_gather_object(hashlib.sha256(got.numpy().tobytes()).hexdigest())
    gap = (got - exact).abs()
    found[name] = {
        "identical": len(set(sums)) == 1,
        "gap": (gap / exact.abs().max()).max().item(),
        "roundings": (gap / (largest + 1e-30)).max().item() * 2**8,  # half a unit: 2**-8
        "pieces": len(pieces),
    }
if me.is_main:
    Path(sys.argv[1]).write_text(json.dumps(found))
stop()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    (folder / "replicas.py").write_text(REPLICAS)
    done = together(2, str(folder / "replicas.py"), str(folder / "found.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def test_gradients_are_the_mean_over_ranks(found):
    assert found["none"]["gap"] < 1e-6


def test_gradients_in_bfloat16_are_the_mean_up_to_rounding(found):
    assert 1e-4 < found["bfloat16"]["gap"] < 1e-2
    assert found["bfloat16"]["roundings"] < 2.01  # of either part, and of the sum


@pytest.mark.parametrize("way", ["none", "bfloat16", "compiled"])
def test_all_ranks_hold_the_same_bits(found, way):
    assert found[way]["identical"]


def test_a_compiled_replica_gives_the_same_gradients(found):
    assert found["compiled"]["gap"] < 1e-6


def test_the_compiled_backward_pass_is_cut_at_the_buckets_even_after_a_call_outside_of_ddp(found):
    assert found["pieces outside"] == 1
    assert found["compiled"]["pieces"] == 2
