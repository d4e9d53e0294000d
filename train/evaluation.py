"""Validation, tasks and samples during training: when they are due, and running them."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from data_prep.order.permutation import round_keys
from eval.sampling.decoding import generate
from eval.sampling.next_token import GenerateOptions
from eval.tasks.registry import run_tasks
from eval.tasks.val_loss import validation_loss
from parallel.collectives import StopAgreed
from storage.atomic import write_text
from storage.metrics import Metrics
from storage.ownership.folder_lock import FolderLost
from train.guards.best_validation import results_after
from train.run import Run

_SAMPLING = "sampling"
log = logging.getLogger(__name__)


def _due(run: Run, every: int) -> bool:
    """Whether something that happens every `every` steps, and at the end, is due now."""
    return every > 0 and (run.step % every == 0 or run.step == run.steps)


def evaluation_due(run: Run) -> bool:
    """Whether validation, tasks or samples are due and were not done before a resume."""
    config = run.config
    periods = (config.eval.every, config.eval.tasks_every, config.sample.every)
    return run.results.get("step") != run.step and any(_due(run, every) for every in periods)


def evaluate(run: Run) -> None:
    """Measure the plain model and draw samples. The numbers go into the present step's line.

    A part that fails does not affect the others. If the ranks agree to stop meanwhile, the next
    start does all of it.
    """
    metrics: Metrics = {}
    for name, part in _parts_due(run):
        try:
            metrics |= part()
        except StopAgreed:
            run.progress.stop_agreed = True
            return
        except FolderLost:  # the loop ends with the next steps, and says so
            continue
        # A measurement fails on every rank alike. Samples fail on rank 0, and nobody waits for it.
        except Exception as error:
            if not (name == _SAMPLING or isinstance(error, ValueError | OSError)):
                raise
            log.error("%s at step %d failed (%s); training continues", name, run.step, error)
    run.results = results_after(run.results, run.step, metrics)


def _parts_due(run: Run) -> Iterator[tuple[str, Callable[[], Mapping[str, float]]]]:
    """What is due now, by name."""
    config = run.config
    if _due(run, config.eval.every):
        yield "val_loss", partial(_validate, run)
    if _due(run, config.eval.tasks_every):
        for task in config.eval.tasks:
            yield task, partial(run_tasks, run.subject, run.eval_options, [task])
    if _due(run, config.sample.every) and run.ranks.is_main:
        yield _SAMPLING, partial(_sample, run)


def _validate(run: Run) -> dict[str, float]:
    """Validation loss of the plain model."""
    return validation_loss(
        run.subject,
        run.data.split("val"),
        tokens=run.config.eval.validated_tokens,
        context_length=run.plan.context_length,
        micro_batch=run.plan.micro_batch,
        dtype=run.learner.dtype,
    )


def _sample(run: Run) -> dict[str, float]:
    """Continue the configured prompts: one file for each step, and a page in TensorBoard."""
    config = run.config.sample
    options = GenerateOptions(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        seed=round_keys(run.config.seed, run.step)[0],
        dtype=run.config.dtype,
    )
    texts = generate(run.model, run.tokenizer, list(config.prompts), options)
    samples = list(zip(config.prompts, texts, strict=True))
    page = "\n\n".join(f"> {prompt or '<|endoftext|>'}\n{text}" for prompt, text in samples)
    run.folder.check()
    write_text(run.folder.samples / f"step_{run.step:06d}.txt", page + "\n")
    run.metrics.write_samples(run.step, samples)
    return {}
