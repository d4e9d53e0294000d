"""What a start says of its run: a few lines, before the first step."""

from collections.abc import Iterator, Mapping
from typing import Any

from storage.terminal.quantities import counted, short
from train.optimizers.registry import optimizer_name
from train.run import Run


def start_lines(run: Run, settings: Mapping[str, Any], processors: str) -> Iterator[str]:
    """Length, network, data, batch and machine, a line each.

    `settings` are the derived values that config.json records.
    """
    plan, shape, data = run.plan, run.model.config, run.data.manifest
    tokens = run.steps * plan.tokens
    yield (
        f"{run.folder.path}: {counted(run.steps, 'step')} of {plan.tokens:,} tokens, "
        f"{short(tokens)} in all ({tokens / data.train.tokens:.2g} epochs)"
    )
    blocks = f"{counted(shape.n_layer, 'layer')}, {counted(shape.n_head, 'head')}"
    yield (
        f"  network    {short(settings['parameters'])} parameters: {blocks}, "
        f"width {shape.n_embd}, {shape.vocab_size:,} ids"
    )
    yield (
        f"  data       {run.config.data}: {short(data.train.tokens)} tokens to train on, "
        f"{short(data.val.tokens)} to validate on"
    )
    parts = [
        counted(plan.world_size, "process", "processes"),
        counted(plan.grad_accum_steps, "micro-batch", "micro-batches"),
        counted(plan.micro_batch, "window"),
        f"{plan.context_length:,} tokens",
    ]
    yield f"  batch      {' x '.join(parts)}"
    optimizer = run.config.optimizer
    yield f"  optimizer  {optimizer_name(optimizer)}, learning rate {optimizer.lr:g}"
    threads = (
        "" if run.ranks.device.type == "cuda" else f" {counted(settings['threads'], 'thread')},"
    )
    compiled = " compiled," if settings["compiled"] == "True" else ""
    yield (
        f"  machine    {settings['device']} {processors},{threads}{compiled} {settings['dtype']}, "
        f"torch {settings['torch']}"
    )
