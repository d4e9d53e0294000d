"""What a start says of its run: a few lines, before the first step."""

from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.order.training_data import TrainingData
from model.estimates.documents import attended_tokens
from storage.terminal.quantities import counted, short
from train.batch_plan import BatchPlan
from train.mixture import source_lines
from train.optimizers.registry import optimizer_name
from train.run import Run


def start_lines(run: Run, settings: Mapping[str, Any], processors: str) -> Iterator[str]:
    """Length, network, data, batch and machine, a line each.

    `settings` are the derived values that config.json records.
    """
    plan, shape, data = run.plan, run.model.config, run.data
    tokens = run.steps * plan.tokens
    epochs = "" if data.is_mixture else f" ({tokens / data.tokens:.2g} epochs)"
    yield (
        f"{run.folder.path}: {counted(run.steps, 'step')} of {plan.tokens:,} tokens, "
        f"{short(tokens)} in all{epochs}"
    )
    blocks = f"{counted(shape.n_layer, 'layer')}, {counted(shape.n_head, 'head')}"
    yield (
        f"  network    {short(settings['parameters'])} parameters: {blocks}, "
        f"width {shape.n_embd}, {shape.vocab_size:,} ids"
    )
    yield (
        f"  data       {_named(data)}: {short(data.tokens)} tokens to train on, "
        f"{short(data.val_tokens)} to validate on"
    )
    if data.is_mixture:
        lines = source_lines(run.config, data, run.steps)
        yield from (f"             {line}" for line in lines)
    if run.config.mask_documents:
        seen = data.mean_of_train(lambda train: attended_tokens(plan.context_length, train.lengths))
        most = (plan.context_length + 1) / 2
        attended = f"{seen:,.1f} tokens on average, not {most:,.1f}"
        yield f"  documents  attention within each: to {attended}"
    parts = [
        counted(plan.world_size, "process", "processes"),
        counted(plan.grad_accum_steps, "micro-batch", "micro-batches"),
        counted(plan.micro_batch, "window"),
        f"{plan.context_length:,} tokens",
    ]
    yield f"  batch      {' x '.join(parts)}"
    optimizer = run.config.optimizer
    yield f"  optimizer  {optimizer_name(optimizer)}, learning rate {optimizer.lr:g}"
    on_cuda = run.ranks.device.type == "cuda"
    threads = "" if on_cuda else counted(settings["threads"], "thread")
    if plan.blocks:
        yield f"  sums       {_tree(plan)}{threads and f' of {threads}'}"
    compiled = {"True": " compiled,", "max": " compiled and tuned,"}.get(settings["compiled"], "")
    yield (
        f"  machine    {settings['device']} {processors},{threads and f' {threads},'}{compiled} "
        f"{settings['dtype']}, torch {settings['torch']}"
    )
    if on_cuda:
        chosen = run.config.deterministic and not run.config.mask_documents
        without = ", as cuDNN's has no deterministic backward pass"
        yield f"  attention  {settings['attention']}{without if chosen else ''}"


def _named(data: TrainingData) -> str:
    if data.is_mixture:
        return f"a mixture of {len(data.sources)} sources"
    return str(data.sources[0].data.folder)


def _tree(plan: BatchPlan) -> str:
    """What the sums of a step do not depend on."""
    micro_batches = plan.windows // plan.micro_batch
    shares = [str(1 << n) for n in range(4) if micro_batches % (1 << n) == 0]
    numbers = " or ".join(filter(None, (", ".join(shares[:-1]), shares[-1])))
    return (
        f"a tree of {counted(micro_batches, 'micro-batch', 'micro-batches')}: the same bits on "
        f"{numbers} process{'es' * (len(shares) > 1)}"
    )
