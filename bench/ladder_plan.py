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


def plan_rung(name: str, recipe: Recipe, seeds: Sequence[int], data: DataSet, out: Path) -> Rung:
    """The runs of one size.

    Raises: ValueError if a setting refuses its value, or if they would read a text twice.
    """
    words = _words(name, recipe)
    network = _network(words, data.tokenizer().n_vocab, out)
    parameters = multiplied_parameters(network)
    steps = max(1, round(recipe.tokens_per_parameter * parameters / recipe.batch_tokens))
    tokens = steps * recipe.batch_tokens
    there = data.manifest.train.tokens
    if tokens > there:
        largest = there / parameters
        raise ValueError(
            f"{name} takes {tokens} tokens but {recipe.data} has {there}, and a text that is read "
            "again teaches less; give a smaller size, a larger data set, or "
            f"--tokens-per-parameter {int(largest * 10) / 10}"
        )
    trials = tuple(
        plan_trial((*words, "--steps", str(steps)), seed, out / f"{name}_s{seed}") for seed in seeds
    )
    return Rung(name, parameters, steps, tokens, tokens * training_flops_per_token(network), trials)


def multiplied_parameters(network: GPTConfig) -> int:
    """The N of 6N + 12LCT: without positions and the table of an untied embedding."""
    counts = count_parameters(network)
    return counts.without_positions - (0 if network.tied else counts.token_embedding)


def _network(words: Sequence[str], n_vocab: int, out: Path) -> GPTConfig:
    return plan_trial(words, 1, out).config.network_for(n_vocab)


def _words(name: str, recipe: Recipe) -> tuple[str, ...]:
    """The command line of a size, without steps, seed and folder."""
    layers, width = map(int, name.split("x"))
    length = _CONTEXT_LENGTH
    flags: dict[str, object] = {
        "--data": recipe.data,
        "--context-length": length,
        "--batch-tokens": recipe.batch_tokens,
        "--micro-batch": recipe.batch_tokens // length,
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
