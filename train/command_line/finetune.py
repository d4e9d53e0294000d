"""The preset finetune: batch, steps and rate for a checkpoint, the data and the machine."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data_prep.order.training_data import open_training_data
from eval.training_config import EvalConfig, SampleConfig
from model.checkpoint import load_config
from model.config import GPTConfig
from model.estimates.parameters import count_parameters
from parallel.ranks import world_size_from_environment
from storage.option_values import AtMost
from storage.retention import SaveConfig
from train.batch_plan import largest_power_of_two
from train.command_line.own_text import fitted_context, most_val_tokens, prompts_from
from train.config import Config
from train.optimizers.adamw import AdamWConfig
from train.preflight.initial_weights import check_positions, check_tokenizer, checkpoint_of_init
from train.schedule import ScheduleConfig

log = logging.getLogger(__name__)

# The batch of nanoGPT's config/finetune_shakespeare.py, 32 windows of 1,024; an eighth on the CPU.
_GPU_BATCH, _CPU_BATCH = 32_768, 4096
_STEPS_A_PASS = 20  # at least, so that a small text is not one batch
# Rate and passes over the data, by the largest number of parameters. 5e-5 and 3 are defaults of the
# Trainer of transformers (learning_rate, num_train_epochs), 3e-5 is nanoGPT's rate for gpt2-xl. Of
# small networks both are measured (bench/LOG.md, "fine-tuning a small network").
_RECIPES = ((30_000_000, 1e-3, 6), (500_000_000, 5e-5, 3), (float("inf"), 3e-5, 3))
_MUCH_DATA = 100_000_000  # tokens that are seen once
_DROPOUT = 0.1  # of GPT-2, and of nanoGPT's advice for fine-tuning
_WORSE_VALIDATIONS = 3
_POINTS = 10  # validations after the one of step 0
_LEAST_STEPS = 20


@dataclass(frozen=True)
class _Choice:
    """What is chosen for a checkpoint, data and a machine."""

    context_length: int
    batch_tokens: int
    steps: int
    lr: float
    dropout: float


def sizes_for(
    tokens: int,
    val_tokens: int,
    shape: GPTConfig,
    world_size: int = 1,
    most: int = _CPU_BATCH,
    asked: Mapping[str, int] | None = None,
) -> _Choice:
    """Sizes for a number of tokens of training and validation.

    `most`: tokens of the largest batch. `asked`: what the user chose of `context_length`,
    `batch_tokens` and `steps`, which the rest then fits.
    Raises: ValueError if the text is too short.
    """
    asked = asked or {}
    context = asked.get("context_length") or fitted_context(
        shape.context_length, tokens, val_tokens
    )
    unit = context * world_size
    windows = largest_power_of_two(max(min(most, tokens // _STEPS_A_PASS) // unit, 1))
    batch = asked.get("batch_tokens") or unit * windows
    parameters = count_parameters(shape).total
    lr, passes = next((lr, passes) for limit, lr, passes in _RECIPES if parameters <= limit)
    passes = 1 if tokens >= _MUCH_DATA else passes
    steps = asked.get("steps") or max(passes * tokens // batch, _LEAST_STEPS)
    repeated = steps * batch > tokens
    return _Choice(context, batch, steps, lr, shape.dropout or _DROPOUT * repeated)


def finetune_config(init: Path, data: Sequence[Path], sizes: Mapping[str, str]) -> Config:
    """The run that trains the weights of `init` further on `data`, a data set or a mixture.

    `sizes`: the texts that the user gave for the flags context-length, batch-tokens and steps.
    Raises: ValueError if one of the two cannot be used, or they have different tokenizers.
    """
    found = open_training_data(data)
    checkpoint = checkpoint_of_init(init)
    check_tokenizer(checkpoint, found.sources[0].data)
    shape, tokens = load_config(checkpoint), found.tokens_before_a_repeat
    on_gpu = torch.cuda.is_available()
    asked = {
        flag.removeprefix("model.").replace("-", "_"): int(text)
        for flag, text in sizes.items()
        if text.isdecimal() and int(text)  # the parser refuses others
    }
    check_positions(init, shape, asked.get("context_length", 1))
    ranks = world_size_from_environment()
    batch = _GPU_BATCH if on_gpu else _CPU_BATCH
    chosen = sizes_for(tokens, most_val_tokens(found), shape, ranks, batch, asked)
    log.info("%s", _reasons(chosen, tokens, shape))
    every = max(chosen.steps // _POINTS, 1)
    # A validation costs a third of training on as many tokens.
    validated = AtMost(max(every * chosen.batch_tokens, 8 * chosen.context_length))
    given = "context_length" in asked  # perhaps as --model.context-length
    return Config(
        init=init,
        data=tuple(data),
        steps=chosen.steps,
        batch_tokens=chosen.batch_tokens,
        context_length=None if given else chosen.context_length,
        stop_when_worse=AtMost(_WORSE_VALIDATIONS),
        model=GPTConfig(dropout=chosen.dropout),
        optimizer=AdamWConfig(lr=chosen.lr),
        schedule=ScheduleConfig(kind="linear", warmup_steps=0.05, min_lr_ratio=0.0),
        eval=EvalConfig(every=every, val_tokens=validated, tasks_every=0, tasks=()),
        sample=SampleConfig(
            every=2 * every,
            prompts=prompts_from(found) or ("",),
            temperature=0.8,
        ),
        save=SaveConfig(),
    )


def _reasons(chosen: _Choice, tokens: int, shape: GPTConfig) -> str:
    """What was chosen and why, in a few lines."""
    parameters = count_parameters(shape).total
    passes = chosen.steps * chosen.batch_tokens / max(tokens, 1)
    cut = f" (the checkpoint's is {shape.context_length})"
    return (
        f"chosen for {tokens:,} tokens and {parameters:,} parameters; flags change it:\n"
        f"  --context-length {chosen.context_length}"
        f"{cut if chosen.context_length < shape.context_length else ''} --batch-tokens "
        f"{chosen.batch_tokens}\n"
        f"  --steps {chosen.steps} ({passes:.1f} times the text) --stop-when-worse "
        f"{_WORSE_VALIDATIONS} --model.dropout {chosen.dropout:g}\n"
        f"  --optimizer.lr {chosen.lr:g} (AdamW: Muon's rates are for a start from nothing)"
    )
