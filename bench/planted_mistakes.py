"""Run a training with one mistake planted in the real code, as a bug would be.

    python bench/planted_mistakes.py rate_doubled demo --eval.tasks-every 0 --out runs/rate_doubled

The first word names the mistake, the others are those of train/main.py. The recorded settings stay
those of a sound run. `bench/band_table.py` says which of such runs a band finds.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any
from unittest.mock import patch

import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from data_prep.order.windows import read_into
from model.gpt import GPT
from storage.script_options import parse_options
from train.main import main as train
from train.optimizers.registry import build_optimizer, update
from train.step import Learner, StepBatch, ids_and_targets

_REPEATED_WINDOWS = 1024  # a fifth of the demo's epoch
_Patch = AbstractContextManager[Any]


def _rate_times(factor: float) -> _Patch:
    def wrong(optimizer: Optimizer, number: int, lr: float, skip: Tensor) -> None:
        update(optimizer, number, factor * lr, skip)

    return patch("train.step.update", wrong)


def _no_shuffling() -> _Patch:
    class InFileOrder:
        """The documents as they are in the shards, in every epoch."""

        def __init__(self, count: int, seed: int, epoch: int) -> None:
            """Takes what the permutation takes."""

        def __call__(self, numbers: Any) -> Any:
            """The documents themselves."""
            return numbers

        inverse = __call__

    return patch("data_prep.order.epoch_index.FeistelPermutation", InFileOrder)


def _targets_off_by_one() -> _Patch:
    def wrong(windows: Tensor) -> tuple[Tensor, Tensor]:
        ids, targets = ids_and_targets(windows)
        return ids, targets.roll(-1, dims=1)

    return patch("train.step.ids_and_targets", wrong)


def _tied_by_accident() -> _Patch:
    initialise = GPT.initialise

    def wrong(model: GPT, seed: int) -> None:
        initialise(model, seed)
        model.lm_head.weight = model.wte.weight

    return patch.object(GPT, "initialise", wrong)


def _accumulation_not_scaled() -> _Patch:
    sound = Learner._forward_and_backward

    def wrong(learner: Learner, batch: StepBatch) -> bool:
        done = sound(learner, batch)
        for parameter in learner.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= learner.plan.grad_accum_steps
        return done

    return patch.object(Learner, "_forward_and_backward", wrong)


def _wrong_setting(**values: float) -> _Patch:
    def wrong(model: GPT, config: Any) -> Optimizer:
        return build_optimizer(model, replace(config, **values))

    return patch("train.build.build_optimizer", wrong)


def _wrong_initial_deviation() -> _Patch:
    sound = GPT._initial_std

    def wrong(model: GPT, name: str, fan_in: int) -> float:
        return 2 * sound(model, name, fan_in)

    return patch.object(GPT, "_initial_std", wrong)


def _repeated_epoch() -> _Patch:
    def wrong(found: Any, stream: Any, first: int) -> None:
        read_into(found, stream, first % _REPEATED_WINDOWS)

    return patch("train.loader.read_into", wrong)


def _half_the_batch() -> _Patch:
    def wrong(batch: StepBatch, size: int) -> Tensor:
        windows = batch.windows.view(-1, size, batch.windows.shape[-1])
        return windows[: max(1, len(windows) // 2)]

    return patch.object(StepBatch, "micro_batches", wrong)


def _bfloat16_moments() -> _Patch:
    def wrong(optimizer: Optimizer, number: int, lr: float, skip: Tensor) -> None:
        update(optimizer, number, lr, skip)
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor) and value.dim():
                    value.copy_(value.bfloat16())

    return patch("train.step.update", wrong)


@contextmanager
def _mask_leak() -> Iterator[None]:
    class Leaking(nn.Module):
        """torch.nn.functional with attention to all tokens of a window."""

        def __getattr__(self, name: str) -> Any:
            return getattr(F, name)

        @staticmethod
        def scaled_dot_product_attention(*words: Any, is_causal: bool = False) -> Tensor:
            return F.scaled_dot_product_attention(*words)

    with patch("model.blocks.F", Leaking()):
        yield


MISTAKES: dict[str, tuple[str, Callable[[], _Patch]]] = {
    "rate_doubled": ("learning rate times 2", lambda: _rate_times(2.0)),
    "rate_halved": ("learning rate times 0.5", lambda: _rate_times(0.5)),
    "no_shuffling": ("no shuffling", _no_shuffling),
    "targets_off_by_one": ("targets one token too late", _targets_off_by_one),
    "tied_by_accident": ("head tied to the embedding", _tied_by_accident),
    "accumulation_not_scaled": ("gradients summed, not averaged", _accumulation_not_scaled),
    "wrong_beta": ("AdamW's beta2 0.999 for 0.95", lambda: _wrong_setting(beta2=0.999)),
    "wrong_initial_deviation": ("initial weights times 2", _wrong_initial_deviation),
    "repeated_epoch": ("a fifth of an epoch again and again", _repeated_epoch),
    "half_the_batch": ("half of each batch is not used", _half_the_batch),
    "bfloat16_moments": ("moments in bfloat16", _bfloat16_moments),
    "mask_leak": ("attention sees later tokens", _mask_leak),
    "wrong_momentum": ("Muon's momentum 0.8 for 0.95", lambda: _wrong_setting(momentum=0.8)),
}
"""Each with what it is, and the patch. The last one is beside the twelve of the table."""


@dataclass(frozen=True)
class Arguments:
    """Train with a mistake in the code; what follows the mistake is for train/main.py."""

    mistake: Annotated[str, tyro.conf.Positional]
    """Name of the mistake; a wrong one lists all."""

    def __post_init__(self) -> None:
        if self.mistake not in MISTAKES:
            raise ValueError(
                f"mistake={self.mistake} cannot be planted; use one of {', '.join(MISTAKES)}"
            )


def main() -> None:
    """Plant the mistake and train."""
    arguments = parse_options(Arguments, sys.argv[1:2], description=__doc__)
    sys.argv = ["train/main.py", *sys.argv[2:]]
    with MISTAKES[arguments.mistake][1]():
        train()


if __name__ == "__main__":
    main()
