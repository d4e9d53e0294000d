"""What is due besides training: validation, tasks, samples, checkpoints."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from data_prep.permutation import round_keys
from eval.generate import GenerateOptions, generate
from eval.tasks import run_tasks
from eval.val_loss import validation_loss
from parallel.ranks import StopAgreed, from_main, limit_waiting
from storage.atomic import write_text
from storage.metrics import Metrics
from train.checks import is_compared
from train.run import Run
from train.saver import validation_loss_of
from train.snapshot import state_tensors

LAST_SAVE_SECONDS = 1800.0
LOOK_UP_SECONDS = 0.2
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
    """Measure the plain model and draw samples; the numbers go into the present step's line.

    One that fails takes no other with it. If the ranks agree to stop meanwhile, all is left for the
    next start.
    """
    metrics: Metrics = {}
    for name, part in parts_due(run):
        try:
            metrics |= part()
        except StopAgreed:
            run.progress.stop_agreed = True
            return
        # Of a measurement on every rank alike; of samples on rank 0, for which nobody waits.
        except (ValueError, OSError) as error:
            log.error("%s at step %d failed (%s); training goes on", name, run.step, error)
    run.results = {"step": run.step, "metrics": metrics}


def parts_due(run: Run) -> Iterator[tuple[str, Callable[[], Mapping[str, float]]]]:
    """What is to be measured and drawn now, by its name."""
    config = run.config
    if due(run, config.eval.every):
        yield "val_loss", partial(validate, run)
    if due(run, config.eval.tasks_every):
        for task in config.eval.tasks:
            yield task, partial(run_tasks, run.subject, run.eval_options, [task])
    if due(run, config.sample.every) and run.ranks.is_main:
        yield "sampling", partial(sample, run)


def validate(run: Run) -> dict[str, float]:
    """Validation loss of the plain model."""
    return validation_loss(
        run.subject,
        run.data.split("val"),
        tokens=run.config.eval.val_tokens,
        context_length=run.plan.context_length,
        micro_batch=run.plan.micro_batch,
        dtype=run.dtype,
    )


def sample(run: Run) -> dict[str, float]:
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
    return {}


def save_due(run: Run) -> bool:
    """Whether this rank should write a checkpoint now; only rank 0 ever should."""
    run.saver.tell()
    if not run.ranks.is_main or run.step in (0, run.saver.asked_step):
        return False
    config = run.config.save
    if any(every and run.step % every == 0 for every in (config.every, config.keep_every)):
        return True
    if is_best(run):
        return True
    minutes = (time.monotonic() - run.saver.asked_at) / 60
    by_clock = config.every_minutes > 0 and minutes >= config.every_minutes
    # What is due by the clock can wait for the one before, and until the replicas were compared.
    return by_clock and not run.saver.busy and is_compared(run)


def is_best(run: Run) -> bool:
    """Whether these weights' validation loss is among the best that checkpoints are kept of."""
    loss, most = run.fresh_results.get("val/loss"), run.config.save.keep_best
    if loss is None or not most:
        return False
    found = (validation_loss_of(path) for path in run.folder.all_checkpoints())
    kept = sorted(other for other in found if other is not None)
    return len(kept) < most or float(loss) < kept[most - 1]


def save(run: Run) -> None:
    """Begin a checkpoint of the present step on rank 0; training waits for a copy on the host."""
    if not run.ranks.is_main:
        return
    started = time.perf_counter()
    if not save_before_is_done(run):
        if run.stop.wanted:
            return  # the last save comes at once
        seconds, config = time.monotonic() - run.saver.asked_at, run.config.save
        log.warning(
            "no checkpoint of step %d: that of step %d has been in the making for %.0f s, and the "
            "other ranks wait no longer; make saves rarer than --save.every %d, --save.keep-every "
            "%d and --save.keep-best %d do",
            *(run.step, run.saver.asked_step, seconds),
            *(config.every, config.keep_every, config.keep_best),
        )
        return
    tensors = run.host_copy.take(state_tensors(run.model, run.optimizer))
    stall = time.perf_counter() - started
    run.saver.begin(run.contents(tensors), run.host_copy.wait, stall)
    run.extra["speed/save_stall_milliseconds"] = 1000 * stall


def save_before_is_done(run: Run) -> bool:
    """Wait for the save in flight, well within what other ranks wait for this one."""
    if run.ranks.world_size == 1:
        run.saver.settle()
        return True
    deadline = time.monotonic() + run.progress.patience / 2
    while run.saver.busy and time.monotonic() < deadline and not run.stop.wanted:
        run.saver.settle(LOOK_UP_SECONDS)
    run.saver.tell()
    return not run.saver.busy


def save_and_wait(run: Run) -> None:
    """Have a checkpoint of the present step on disk. Raises: OSError if that cannot be.

    The other ranks wait, so that they can write it should rank 0 die meanwhile.
    """
    limit_waiting(LAST_SAVE_SECONDS)
    run.end_if_silent(LAST_SAVE_SECONDS)
    if run.ranks.is_main:
        run.saver.settle()
        if run.saver.saved_step != run.step:
            save(run)
            run.saver.drain()
    from_main(run.step)
