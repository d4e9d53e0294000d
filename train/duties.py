"""What is due besides training: validation, tasks, samples, checkpoints."""

import logging
import time

from data_prep.permutation import round_keys
from eval.generate import GenerateOptions, generate
from eval.tasks import run_tasks
from eval.val_loss import validation_loss
from storage.atomic import write_text
from storage.metrics import Metrics
from train.resume import Position, save_checkpoint
from train.run import Run

log = logging.getLogger(__name__)


def due(run: Run, every: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return every > 0 and (run.step % every == 0 or run.step == run.steps)


def evaluation_due(run: Run) -> bool:
    """Whether validation, tasks or samples are due and not done yet (before a resume)."""
    config = run.config
    periods = (config.eval.every, config.eval.tasks_every, config.sample.every)
    return run.results.get("step") != run.step and any(due(run, every) for every in periods)


def evaluate(run: Run) -> None:
    """Measure the plain model and draw samples; the numbers go into the present step's line."""
    config = run.config
    metrics: Metrics = {}
    try:
        if due(run, config.eval.every):
            metrics |= validation_loss(
                run.subject,
                run.data.split("val"),
                tokens=config.eval.val_tokens,
                context_length=run.plan.context_length,
                micro_batch=run.plan.micro_batch,
                dtype=run.dtype,
            )
        if due(run, config.eval.tasks_every):
            metrics |= run_tasks(run.subject, run.eval_options, config.eval.tasks)
        if due(run, config.sample.every) and run.ranks.is_main:
            sample(run)
    except ValueError as error:  # of a task: on every rank alike; of a sample: nobody waits for it
        log.error("evaluation at step %d failed (%s); training goes on", run.step, error)
    run.results = {"step": run.step, "metrics": metrics}


def sample(run: Run) -> None:
    """Continue the configured prompts; one file a step, and TensorBoard text."""
    config = run.config.sample
    options = GenerateOptions(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        seed=round_keys(run.config.seed, run.step)[0],
        dtype=run.config.dtype,
    )
    texts = generate(run.model, run.tokenizer, list(config.prompts), options)
    page = "\n\n".join(
        f"> {prompt or '<|endoftext|>'}\n{text}"
        for prompt, text in zip(config.prompts, texts, strict=True)
    )
    write_text(run.folder.samples / f"step_{run.step:06d}.txt", page + "\n")
    run.metrics.write_text(run.step, "samples", page)


def save_due(run: Run) -> bool:
    """Whether this rank should write a checkpoint now; only rank 0 ever should."""
    if not run.ranks.is_main or run.step == 0 or run.saved_step == run.step:
        return False
    config = run.config.save
    minutes = (time.monotonic() - run.saved_at) / 60
    by_clock = config.every_minutes > 0 and minutes >= config.every_minutes
    return by_clock or (config.every > 0 and run.step % config.every == 0)


def save(run: Run) -> None:
    """Write a checkpoint of the present step on rank 0, unless there is one already."""
    if not run.ranks.is_main or run.saved_step == run.step:
        return
    position = Position(
        step=run.step,
        next_window=run.loader.next_window,
        seed=run.config.seed,
        data=str(run.config.data.resolve()),
        data_fingerprint=run.data.fingerprint,
        context_length=run.plan.context_length,
        val_tokens=run.config.eval.val_tokens,
    )
    save_checkpoint(run.folder, position, run.model, run.optimizer, run.tokenizer, run.results)
    run.folder.keep_newest(run.config.save.keep)
    run.folder.write_status("running", run.step)
    run.saved_step, run.saved_at = run.step, time.monotonic()
