"""The training runs that bench/recipe.py compares, and in which order they are made.

A variant is a network with its optimizer and schedule. It may have options, such as learning
rates: all are tried on the first seed, and the best one has the other seeds too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch.optim import AdamW

from bench.bare_run import BARE
from model.config import GPTConfig
from train.config import Config
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import Muon, MuonConfig
from train.presets import PRESETS
from train.schedule import ScheduleConfig
from train.step import Learner

GPT2, MODERN = "gpt2", "modern"
FIRST_SEED = 1
_CONTEXT_LENGTH = 128
# Layers, width and heads. Parameters besides embeddings and head: 0.39M, 0.98M and 3.1M.
SIZES = {"small": (2, 128, 2), "middle": (5, 128, 2), "large": (7, 192, 3)}
MIDDLE = "middle"
FULL = "124M"  # both presets in their own shape, for a GPU
_GPT2_RATES = (1e-3, 3e-3, 6e-3, 1.2e-2, 5e-4)
_FULL_RATES = (6e-4, 1.8e-3)  # GPT-3's, and three times as much
_MATRIX_RATES = (1e-3, 3e-3, 1e-2)
_TIED_RATES = (0.7, 0.05, 0.004)
# As the preset of a short run: a tenth of it is warm-up (train/config.py).
_GPT2_SCHEDULE = ScheduleConfig(warmup_steps=0.1)
_NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5  # https://kellerjordan.github.io/posts/muon/

# Each piece: what is changed in `modern`.
PIECES = {
    "matrices": "Muon → AdamW for the matrices",
    "one_rate": "Muon and rates by group → AdamW with one rate",
    "schedule": "hold and linear decay → warm-up and cosine",
    "initial": "zero outputs → GPT-2's initial weights",
    "positions": "rotary → learned positions",
    "qk_norm": "no QK-norm",
    "mlp": "ReLU² → GELU",
    "tied": "untied → tied head",
    "embedding_norm": "no norm of the embedding",
    "norm_weight": "norms with learned weights",
    "softcap": "no soft-cap",
    "momentum": "no warm-up of the momentum",
    "newton_schulz": "Polar Express → Newton-Schulz",
    "stacked": "q, k and v orthogonalised as one",
    "shortcuts": "with shortcuts",
}

# What was measured, by name: see recipe.py.
Records = Mapping[str, Mapping[str, Any]]
# A change of a learner for the time of its run, of what no setting describes.
_Change = Callable[[Learner], AbstractContextManager[Any]]


def _unchanged(_: Learner) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def _stacked(learner: Learner) -> Iterator[None]:
    """Query, key and value as one matrix."""
    assert isinstance(learner.optimizer, Muon)
    learner.optimizer.stacks = [1] * len(learner.optimizer.stacks)
    yield


@contextmanager
def _newton_schulz(_: Learner) -> Iterator[None]:
    """Five times the same step instead of five steps of Polar Express."""
    with patch("train.optimizers.muon.POLAR_EXPRESS", _NEWTON_SCHULZ):
        yield


@contextmanager
def _adamw_for_matrices(learner: Learner) -> Iterator[None]:
    """AdamW in Muon's place; all groups keep their rates and decays."""
    muon = learner.optimizer
    assert isinstance(muon, Muon)
    keys = ("params", "lr", "lr_ratio", "weight_decay")
    groups = [{key: group[key] for key in keys} for group in muon.param_groups]
    betas = (muon.config.beta1, muon.config.beta2)
    learner.optimizer = AdamW(groups, betas=betas, eps=muon.config.epsilon, fused=True)
    yield


@dataclass(frozen=True)
class _Variant:
    """A network with its training, in one or more options."""

    name: str
    options: Mapping[str, Config]
    change: _Change = _unchanged


@dataclass(frozen=True)
class Trial:
    """One training run."""

    size: str
    variant: str
    option: str
    config: Config
    change: _Change

    @property
    def name(self) -> str:
        """The name of its result file."""
        return f"{self.size}_{self.variant}_{self.option}_seed{self.config.seed}"


@dataclass(frozen=True)
class Timing:
    """The CPU time of a step of `gpt2` and of `modern`, measured in turns."""

    size: str
    configs: tuple[Config, Config]

    @property
    def name(self) -> str:
        """The name of its result file."""
        return f"{self.size}_step_seconds"


def contestants(size: str, base: Config) -> tuple[_Variant, _Variant]:
    """`gpt2` with AdamW and `modern`, both of this size. `base` has data, steps and batch."""
    windows = base.batch_tokens // context_length(size)
    found = {}
    for name in (GPT2, MODERN):
        preset = PRESETS[name]
        shape = replace(preset.model, vocab_size=base.model.vocab_size)
        if size != FULL:
            layers, width, heads = SIZES[size]
            shape = replace(shape, n_layer=layers, n_embd=width, n_head=heads)
            shape = replace(shape, context_length=_CONTEXT_LENGTH)
        own = {"model": shape, "optimizer": preset.optimizer, "schedule": preset.schedule}
        found[name] = replace(base, micro_batch=windows, **own)
    gpt2 = replace(found[GPT2], schedule=_GPT2_SCHEDULE)
    rates = {
        f"{rate:g}": replace(gpt2, optimizer=AdamWConfig(lr=rate))
        for rate in (_FULL_RATES if size == FULL else _GPT2_RATES)
    }
    return _Variant(GPT2, rates), _Variant(MODERN, {"preset": found[MODERN]})


def context_length(size: str) -> int:
    """Tokens of a window of the networks of this size."""
    return PRESETS[GPT2].model.context_length if size == FULL else _CONTEXT_LENGTH


def pieces(base: Config) -> list[_Variant]:
    """`modern` of the middle size without each of its pieces, and with shortcuts."""
    modern = contestants(MIDDLE, base)[1].options["preset"]
    muon = modern.optimizer
    assert isinstance(muon, MuonConfig)

    def network(**changes: Any) -> dict[str, Config]:
        return {"only": replace(modern, model=replace(modern.model, **changes))}

    def optimizer(**changes: Any) -> dict[str, Config]:
        return {"only": replace(modern, optimizer=replace(muon, **changes))}

    tied = network(tied=True)["only"]
    tied_rates = {
        f"{rate:g}": replace(tied, optimizer=replace(muon, embedding_lr=rate))
        for rate in _TIED_RATES
    }
    matrix_rates = {
        f"{rate:g}": replace(modern, optimizer=replace(muon, lr=rate)) for rate in _MATRIX_RATES
    }
    one_rate = {
        f"{rate:g}": replace(modern, optimizer=AdamWConfig(lr=rate)) for rate in _GPT2_RATES[1:4]
    }
    cosine = {"only": replace(modern, schedule=_GPT2_SCHEDULE)}
    same = {"only": modern}
    return [
        _Variant("matrices", matrix_rates, _adamw_for_matrices),
        _Variant("one_rate", one_rate),
        _Variant("schedule", cosine),
        _Variant("initial", network(initial_weights=GPT2)),
        _Variant("positions", network(position="learned")),
        _Variant("qk_norm", network(qk_norm=False)),
        _Variant("mlp", network(mlp="gelu")),
        _Variant("tied", tied_rates),
        _Variant("embedding_norm", network(embedding_norm=False)),
        _Variant("norm_weight", network(norm_weight=True)),
        _Variant("softcap", network(logit_softcap=None)),
        _Variant("momentum", optimizer(momentum_start=0.95)),
        _Variant("newton_schulz", same, _newton_schulz),
        _Variant("stacked", same, _stacked),
        _Variant("shortcuts", network(shortcuts=True)),
    ]


def base_config(data: Path, n_vocab: int, steps: int, batch_tokens: int) -> Config:
    """What all runs share."""
    shape = GPTConfig(vocab_size=n_vocab)
    return replace(BARE, data=(data,), steps=steps, batch_tokens=batch_tokens, model=shape)


def final_loss(record: Mapping[str, Any]) -> float:
    """The last validation loss of a run; infinite if it diverged."""
    last = record["losses"][-1]
    return math.inf if last is None else last


def first_losses(found: Records, size: str, variant: str) -> dict[str, float]:
    """The final loss of each option that has been tried on the first seed."""
    return {
        record["option"]: final_loss(record)
        for record in found.values()
        if (record.get("size"), record.get("variant"), record.get("seed"))
        == (size, variant, FIRST_SEED)
    }


def _best_option(size: str, variant: _Variant, found: Records) -> str | None:
    """The option with the lowest loss on the first seed; None until all of them are there."""
    losses = first_losses(found, size, variant.name)
    return min(losses, key=losses.__getitem__) if losses.keys() == variant.options.keys() else None


def plan(
    base: Config, seeds: int, found: Records, sizes: Iterable[str] = SIZES
) -> list[Trial | Timing]:
    """All runs in order, as far as the best options are known from the results in `found`."""
    compared = {size: contestants(size, base) for size in sizes}
    later = range(FIRST_SEED + 1, FIRST_SEED + seeds)
    planned: list[Trial | Timing] = []
    for size, variants in compared.items():
        for variant in variants:
            planned += _trials(size, variant, FIRST_SEED)
        rivals = tuple(next(iter(variant.options.values())) for variant in variants)
        planned.append(Timing(size, (rivals[0], rivals[1])))
    for seed in later:
        for size, variants in compared.items():
            for variant in variants:
                planned += _trials(size, variant, seed, _best_option(size, variant, found))
    removed = pieces(base) if MIDDLE in compared else []
    for variant in removed:
        planned += _trials(MIDDLE, variant, FIRST_SEED)
    for seed in later:
        for variant in removed:
            planned += _trials(MIDDLE, variant, seed, _best_option(MIDDLE, variant, found))
    return planned


def _trials(size: str, variant: _Variant, seed: int, option: str | None = "") -> list[Trial]:
    """The runs of a variant on a seed: of all options (""), of one, or of none (None)."""
    return [
        Trial(size, variant.name, name, replace(config, seed=seed), variant.change)
        for name, config in variant.options.items()
        if option in ("", name)
    ]
