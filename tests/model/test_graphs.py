"""Network and loss are one graph for torch.compile, however they are configured."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from model.gpt import GPT
from model.loss import NextTokenLoss
from model.precision import autocast
from model.shapes import SHAPES

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 8, "vocab_size": 50}
# Shape, fused loss, residual stream, recomputed blocks.
WAYS = [
    *product(("gpt2", "modern"), (False, True), (None, torch.bfloat16), (False,)),
    ("gpt2", False, None, True),
    ("modern", True, torch.bfloat16, True),
]


def graphs_of(step, dtype=None):
    """The graphs that torch.compile makes of a forward and backward pass; a break is an error."""
    graphs = []

    def counted(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(step, backend=counted, dynamic=False, fullgraph=True)
    ids = torch.arange(24).view(3, 8)
    for _ in range(2):  # the second pass adds to gradients that exist
        with autocast(dtype or torch.float32, torch.device("cpu")):
            loss = compiled(ids, ids.roll(-1, 1))
        loss.backward()
    return graphs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by its own compiler
@pytest.mark.parametrize(("shape", "fused", "residual", "recompute"), WAYS)
def test_network_and_loss_are_one_graph(shape, fused, residual, recompute):
    model = GPT(replace(SHAPES[shape], **SMALL))
    model.initialise(0)
    graphs = graphs_of(NextTokenLoss(model, fused, residual, recompute), residual)
    assert len(graphs) == 1
    applied = [node for node in graphs[0].graph.nodes if "autograd_function" in str(node.target)]
    assert len(applied) == fused  # head and loss are one operator with its own backward pass
    softmax = [node for node in graphs[0].graph.nodes if "cross_entropy" in str(node.target)]
    assert len(softmax) == (not fused)


def test_a_break_is_found():
    class Read(torch.nn.Module):
        def forward(self, ids, targets):
            x = (ids - targets).float().requires_grad_()
            return x.sum() if x.sum() > 0 else x.mean()

    with pytest.raises(torch._dynamo.exc.Unsupported):
        graphs_of(Read())
