"""The registry of optimizers: each has a name, and its updates can be skipped."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from model.config import GPTConfig
from model.gpt import GPT
from tests.runs import MODERN
from train.optimizers.registry import OPTIMIZERS, OptimizerKind, build_optimizer, optimizer_name
from train.optimizers.sgd import SGDConfig

MODEL = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=10))


class SkipsWeightsOnly(SGD):
    """Leaves the weights as they are in a step that is to be skipped, but not its momentum."""

    @torch.no_grad()
    def step(self):
        for weight in self.param_groups[0]["params"]:
            momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
            momentum.mul_(0.9).add_(weight.grad)
            weight.copy_(torch.where(self.found_inf.bool(), weight, weight - 0.1 * momentum))


class SkipsWhatIsNotFinite(SGD):
    """Looks at the gradient and not at the flag: a spike, which is finite, is applied."""

    @torch.no_grad()
    def step(self):
        for weight in self.param_groups[0]["params"]:
            sound = torch.isfinite(weight.grad).all()
            weight.copy_(torch.where(sound, weight - 0.1 * weight.grad, weight))


class CountsSkippedSteps(SGD):
    """Leaves the weights as they are, and counts the step that is to be skipped in its state."""

    @torch.no_grad()
    def step(self):
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            state["step"] = state.get("step", torch.zeros(())) + 1
            weight.copy_(torch.where(self.found_inf.bool(), weight, weight - 0.1 * weight.grad))


@pytest.fixture
def build(monkeypatch):
    """Builds an optimizer that is in the registry as `tried`, from a function of parameters."""

    class TriedConfig(SGDConfig):
        """Settings of no other optimizer."""

    def build_tried(optimizer):
        kind = OptimizerKind(TriedConfig, lambda model, _: optimizer(model.parameters()))
        monkeypatch.setitem(OPTIMIZERS, "tried", kind)
        return build_optimizer(MODEL, TriedConfig())

    return build_tried


@pytest.mark.parametrize("shape", [MODEL.config, MODERN, replace(MODERN, shortcuts=True)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_can_skip_and_is_found_by_its_configuration(name, shape):
    config, model = OPTIMIZERS[name].config(), GPT(shape)
    optimizer = build_optimizer(model, config)
    assert optimizer_name(config) == name
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("fused", [partial(AdamW, lr=1.0), partial(Adam, amsgrad=True), SGD])
def test_fused_optimizers_of_torch_are_accepted(build, fused):
    assert build(partial(fused, fused=True)).param_groups[0]["fused"]


@pytest.mark.parametrize(
    "deaf",
    [
        *(SGD, partial(SGD, foreach=True), partial(AdamW, foreach=True), torch.optim.RMSprop),
        *(SkipsWeightsOnly, SkipsWhatIsNotFinite, CountsSkippedSteps),
    ],
)
def test_an_optimizer_that_does_not_honour_the_skip_flag_is_refused_by_name(build, deaf):
    with pytest.raises(ValueError, match=r"optimizer tried changes .* honour `found_inf`; use a f"):
        build(deaf)


def test_the_trial_leaves_the_network_as_it_is():
    before = [parameter.clone() for parameter in MODEL.parameters()]
    build_optimizer(MODEL, SGDConfig())
    assert all(map(torch.equal, before, MODEL.parameters()))
