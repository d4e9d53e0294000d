"""Presets: complete runs by name, for `train/main.py NAME`."""

from dataclasses import replace
from pathlib import Path

from eval.training_config import EvalConfig, SampleConfig
from model.shapes import SHAPES
from storage.option_values import AtMost
from storage.retention import SaveConfig
from train.config import Config
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.schedule import ScheduleConfig

_REFERENCE = Config()
# GPT-2's validation loss in a third to a sixth of the tokens, by the reports of modded-nanogpt.
# Rates and schedule are those of its tuned baseline of 3,250 steps, 1.7B tokens:
# https://github.com/KellerJordan/modded-nanogpt records/track_3_optimization, pull request 323
_MODERN = replace(
    _REFERENCE,
    steps=3250,
    model=SHAPES["modern"],
    optimizer=MuonConfig(),
    schedule=ScheduleConfig(kind="linear", warmup_steps=0, hold=0.3, min_lr_ratio=0.0),
)
_DEMO = Config(
    data=(Path("data/demo"),),
    eval=EvalConfig(
        every=AtMost(100), val_tokens=AtMost(16_384), tasks_every=250, tasks=("pydoc_choice",)
    ),
    sample=SampleConfig(
        every=AtMost(250), prompts=("Return the", ""), max_tokens=48, temperature=0.8
    ),
    save=SaveConfig(every=100),
)

# Larger shapes have the learning rate of GPT-3's model of the nearest size (table 2.1):
# https://arxiv.org/abs/2005.14165
_PRESETS = {
    "gpt2": _REFERENCE,
    "gpt2-medium": replace(
        _REFERENCE,
        model=SHAPES["gpt2-medium"],
        optimizer=AdamWConfig(lr=3e-4),
    ),
    "gpt2-large": replace(
        _REFERENCE,
        model=SHAPES["gpt2-large"],
        optimizer=AdamWConfig(lr=2.5e-4),
    ),
    "gpt2-xl": replace(
        _REFERENCE,
        model=SHAPES["gpt2-xl"],
        optimizer=AdamWConfig(lr=2e-4),
    ),
    "modern": _MODERN,
    "modern-medium": replace(_MODERN, model=SHAPES["modern-medium"]),
    "modern-large": replace(_MODERN, model=SHAPES["modern-large"]),
    "gpt2-tinystories": replace(
        _REFERENCE,
        data=(Path("data/tinystories"),),
        steps=3000,
        optimizer=AdamWConfig(weight_decay=0.001),
        schedule=ScheduleConfig(warmup_steps=AtMost(100)),
        sample=SampleConfig(prompts=("Once upon a time", "")),
    ),
    # `make run` uses this preset: Python's own documentation with 4,096 ids of its own, minutes on
    # two CPU cores. Losses by steps and vocabulary are in bench/LOG.md.
    "demo": replace(
        _DEMO,
        steps=900,
        batch_tokens=2048,
        model=SHAPES["demo"],
        # Half the rate of a long run: bench/LOG.md.
        optimizer=MuonConfig(lr=0.012),
        schedule=_MODERN.schedule,
        eval=replace(_DEMO.eval, every=AtMost(90), tasks_every=450),
        sample=replace(_DEMO.sample, every=AtMost(450)),
        save=SaveConfig(every=90),
    ),
    # The same with the recipe of 2019. Twice the learning rate or twice the batch gave a higher
    # validation loss (bench/LOG.md).
    "gpt2-demo": replace(
        _DEMO,
        steps=500,
        batch_tokens=1024,
        micro_batch=1,
        model=SHAPES["gpt2-demo"],
        optimizer=AdamWConfig(lr=1e-3),
        schedule=ScheduleConfig(warmup_steps=AtMost(20)),
    ),
}
PRESETS = {
    name: replace(preset, out=Path("runs") / name) if preset.out == Config.out else preset
    for name, preset in _PRESETS.items()
}
"""Each with a run folder of its name, runs/NAME, if it names none."""
