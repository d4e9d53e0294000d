"""--recompute blocks: the same bits in less memory, and a setting that may change."""

from dataclasses import replace

import pytest
import torch

from bench.bare_run import bare_learner, bare_loader
from model.dropout import set_random_state
from model.gpt import GPT
from model.loss import NextTokenLoss
from storage.retention import SaveConfig
from tests.runs import (
    MODERN,
    NANO,
    RECIPES,
    alone,
    final_bytes,
    forget_after,
    losses,
    nano_config,
    run_to_end,
)
from train.checkpoints.host_copy import state_tensors

DEEPER = replace(NANO, n_layer=3, n_head=2, n_embd=16)
SHORTCUTS = replace(MODERN, n_layer=4, shortcuts=True)


def state_after_steps(config, steps=3):
    """Weights and moments after a few steps, by name."""
    learner = bare_learner(config, alone())
    loader = bare_loader(config, learner)
    for _ in range(steps):
        learner.step(loader.next_step(), 1e-2)
    loader.close()
    return state_tensors(learner.model, learner.optimizer)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": DEEPER, "fused_loss": "off"},
        {"model": replace(DEEPER, dropout=0.2), "fused_loss": "on", "dtype": "bfloat16"},
        {**RECIPES["modern"], "model": replace(SHORTCUTS, dropout=0.2), "reduction": "tree"},
        {"model": SHORTCUTS, "dtype": "bfloat16", "residual": "bfloat16"},
    ],
    ids=["gpt2", "dropout-fused", "modern-shortcuts-dropout-tree", "shortcuts-bfloat16"],
)
def test_blocks_that_are_computed_again_give_the_same_bits(tmp_path, changes):
    config = nano_config(tmp_path, **changes)
    plain, again = (state_after_steps(replace(config, recompute=how)) for how in ("off", "blocks"))
    assert plain.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.items())


def test_a_run_may_change_it_and_ends_as_without(tmp_path):
    config = nano_config(tmp_path, model=DEEPER, save=SaveConfig(every=4, every_minutes=0, keep=9))
    run_to_end(config)
    changed = replace(config, out=tmp_path / "changed", recompute="blocks")
    run_to_end(changed)
    forget_after(changed.out, 4)
    run_to_end(replace(changed, recompute="off"))
    assert losses(changed.out) == losses(config.out)
    assert final_bytes(changed.out) == final_bytes(config.out)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by its own compiler
@pytest.mark.long
def test_a_network_whose_blocks_are_computed_again_compiles_in_one_graph():
    torch._dynamo.reset()
    model = GPT(replace(SHORTCUTS, n_layer=2, vocab_size=60, dropout=0.2))
    model.initialise(1)
    ids = torch.arange(32).view(2, 16)
    step, found = NextTokenLoss(model, recompute=True), []
    compiled = torch.compile(step, backend="aot_eager", dynamic=False, fullgraph=True)
    for own in (step, compiled):
        model.zero_grad()
        set_random_state(1)
        own(ids, ids + 1).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for eager, traced in zip(*found, strict=True):
        torch.testing.assert_close(traced, eager, atol=1e-6, rtol=1e-4)
