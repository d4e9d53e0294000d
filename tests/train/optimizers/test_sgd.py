"""SGD: its update, a skipped one, its memory, and runs that are resumed."""

import copy
import math
from contextlib import suppress

import pytest
import torch

from tests.runs import KEEP_ALL, final_bytes, forget_after, losses, nano_config, run_to_end
from tests.train.optimizers.test_adamw import CONFIG, model_with_gradients
from train.checks import StopTraining
from train.optimizers.adamw import parameter_groups
from train.optimizers.registry import build_optimizer, update
from train.optimizers.sgd import SGDConfig

KINDS = [
    SGDConfig(lr=0.1),
    SGDConfig(lr=0.1, momentum=0.9, weight_decay=0.01),
    SGDConfig(lr=0.1, momentum=0.9, nesterov=True),
]


@pytest.mark.parametrize("config", KINDS)
def test_an_update_equals_plain_sgd_in_float64_also_after_one_that_is_skipped(config):
    model = model_with_gradients()
    reference = copy.deepcopy(model).double()
    plain = torch.optim.SGD(
        parameter_groups(reference, config.weight_decay),
        lr=0.1,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=False,
    )
    own = build_optimizer(model, config)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        other.grad = one.grad.double()
    update(own, 0, 0.1, skip=torch.ones(()))
    for step in range(3):
        update(own, step, 0.1, skip=torch.zeros(()))
        plain.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", KINDS)
def test_it_keeps_the_bytes_that_its_configuration_says(config):
    model = model_with_gradients()
    optimizer = build_optimizer(model, config)
    update(optimizer, 0, 0.1, torch.zeros(()))
    kept = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    assert kept == config.update_cost(CONFIG, "cpu").state_bytes
    assert (kept > 0) == (config.momentum > 0)


@pytest.mark.parametrize("config", KINDS)
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(tmp_path, config):
    run = nano_config(tmp_path, optimizer=config, save=KEEP_ALL)
    run_to_end(run)
    undisturbed = losses(run.out), final_bytes(run.out)
    forget_after(run.out, 4)
    run_to_end(run)
    assert (losses(run.out), final_bytes(run.out)) == undisturbed


@pytest.mark.parametrize("lr", [10.0, 100.0, 1000.0])
def test_a_rate_that_is_much_too_large_ends_in_numbers_or_in_one_sentence(tmp_path, lr):
    config = nano_config(tmp_path, optimizer=SGDConfig(lr=lr), steps=30)
    with suppress(StopTraining):
        run_to_end(config)
    assert len(losses(config.out)) >= 10
    assert losses(config.out)[0] == pytest.approx(math.log(300), rel=0.1)


def test_nesterov_without_a_momentum_is_refused():
    with pytest.raises(ValueError, match=r"nesterov=True needs a momentum; give --optimizer\.mo"):
        SGDConfig(nesterov=True)
