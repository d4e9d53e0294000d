"""The networks of bench/ladder.py: their shapes, tokens and command lines."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from data_prep.dataset.shards import DataSet
from model.config import GPTConfig
from model.estimates.flops import training_flops_per_token
from model.estimates.parameters import count_parameters
from train.experiments.trials import Trial, plan_trial

_CONTEXT_LENGTH = 128
_SHAPE = re.compile(r"([1-9]\d{0,2})x([1-9]\d{0,4})")
# The rule by which one set of rates serves all widths, found on one seed that is in no draw
# (bench/LOG.md). AdamW's update of a head is as large whatever the width, so its rate falls with
# it; Muon's update of a matrix does not depend on it.
_MATRIX_LR = 0.006
_HEAD_LR_TIMES_WIDTH = 0.8


@dataclass(frozen=True)
class Recipe:
    """What all sizes have in common."""

    data: Path
    batch_tokens: int
    """Of a step of the smallest size."""
    batch_power: float
    """The batch grows with this power of the parameters."""
    tokens_per_parameter: float
    head_width: int
    val_tokens: int


@dataclass(frozen=True)
class Rung:
    """One size: its shape, how long it is trained, and its runs."""

    name: str
    """Layers and width, such as 2x48."""
    parameters: int
    """Those that are multiplied: without the table of an untied embedding."""
    batch_tokens: int
    """Of a step."""
    steps: int
    tokens: int
    flops: float
    """Of the whole training."""
    trials: tuple[Trial, ...]
    """One for each seed."""

    def with_checkpoints(self, count: int) -> Self:
        """The same, where each run keeps `count` checkpoints, evenly over its steps."""
        flags = ("--save.keep-every", str(max(1, self.steps // count)))
        kept = (replace(trial, words=(*trial.words, *flags)) for trial in self.trials)
        return replace(self, trials=tuple(kept))


def check_sizes(names: Sequence[str], head_width: int) -> None:
    """Raises: ValueError if a name is no size, or is named twice."""
    for name in names:
        found = _SHAPE.fullmatch(name)
        if found is None:
            raise ValueError(f"sizes={name} is no size; write layers and width, such as 2x48")
        if int(found[2]) % head_width:
            raise ValueError(
                f"sizes={name} has a width that is no multiple of head_width={head_width}; try "
                f"{found[1]}x{-(-int(found[2]) // head_width) * head_width}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"sizes={' '.join(names)} names a size twice; name each once")


def plan_rungs(
    names: Sequence[str], recipe: Recipe, seeds: Sequence[int], data: DataSet, out: Path
) -> list[Rung]:
    """The runs of each size, in the order of the names.

    Raises: ValueError if a setting refuses its value, or if they would read a text twice.
    """
    n_vocab = data.tokenizer().n_vocab
    networks = [
        plan_trial(_words(name, recipe, _CONTEXT_LENGTH), 1, out).config.network_for(n_vocab)
        for name in names
    ]
    least = min(map(multiplied_parameters, networks))
    return [
        _rung(name, network, least, recipe, seeds, data, out)
        for name, network in zip(names, networks, strict=True)
    ]


def _rung(
    name: str,
    network: GPTConfig,
    least: int,
    recipe: Recipe,
    seeds: Sequence[int],
    data: DataSet,
    out: Path,
) -> Rung:
    """The runs of one size; the smallest one has `least` parameters."""
    parameters = multiplied_parameters(network)
    wanted = recipe.batch_tokens * (parameters / least) ** recipe.batch_power
    batch = max(1, round(wanted / _CONTEXT_LENGTH)) * _CONTEXT_LENGTH
    steps = max(1, round(recipe.tokens_per_parameter * parameters / batch))
    tokens = steps * batch
    there = data.manifest.train.tokens
    if tokens > there:
        largest = there / parameters
        raise ValueError(
            f"{name} takes {tokens} tokens but {recipe.data} has {there}, and a text that is read "
            "again teaches less; give a smaller size, a larger data set, or "
            f"--tokens-per-parameter {int(largest * 10) / 10}"
        )
    words = (*_words(name, recipe, batch), "--steps", str(steps))
    trials = tuple(plan_trial(words, seed, out / f"{name}_s{seed}") for seed in seeds)
    flops = tokens * training_flops_per_token(network)
    return Rung(name, parameters, batch, steps, tokens, flops, trials)


def multiplied_parameters(network: GPTConfig) -> int:
    """The N of 6N + 12LCT: without positions and the table of an untied embedding."""
    counts = count_parameters(network)
    return counts.without_positions - (0 if network.tied else counts.token_embedding)


def _words(name: str, recipe: Recipe, batch_tokens: int) -> tuple[str, ...]:
    """The command line of a size, without steps, seed and folder."""
    layers, width = map(int, name.split("x"))
    length = _CONTEXT_LENGTH
    flags: dict[str, object] = {
        "--data": recipe.data,
        "--context-length": length,
        "--batch-tokens": batch_tokens,
        "--micro-batch": batch_tokens // length,
        "--model.n-layer": layers,
        "--model.n-head": width // recipe.head_width,
        "--model.n-embd": width,
        "--optimizer.lr": _MATRIX_LR,
        "--optimizer.head-lr": round(_HEAD_LR_TIMES_WIDTH / width, 6),
        # Otherwise the shortest runs would end within the warm-up of the momentum.
        "--optimizer.momentum-steps": 0,
        "--eval.every": 10**9,  # only before the first step and after the last
        "--eval.val-tokens": recipe.val_tokens,
        "--eval.tasks-every": 0,
        "--sample.every": 0,
    }
    return ("modern", *(str(word) for pair in flags.items() for word in pair))
