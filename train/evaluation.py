"""Validation, tasks and samples during training: when they are due, and running them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from data_prep.order.permutation import round_keys
from eval.sampling.decoding import sample_on_ranks, start_samples
from eval.sampling.next_token import GenerateOptions
from eval.tasks.mixture_loss import mixture_loss
from eval.tasks.registry import run_tasks
from parallel.collectives import StopAgreed
from storage.atomic import write_text
from storage.metrics import Metrics
from storage.ownership.folder_lock import FolderLost
from train.guards.best_validation import results_after
from train.run import Run

_SAMPLE_BATCHES = 8  # of the prompts, if there are as many: up to eight ranks share them
_T = TypeVar("_T")
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
        except (ValueError, OSError) as error:  # the same on every rank, or of rank 0's files
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
    if _due(run, config.sample.every):
        yield "sampling", partial(_sample, run)


def _validate(run: Run) -> dict[str, float]:
    """Validation loss of the plain model."""
    return mixture_loss(
        run.subject,
        run.data,
        tokens=run.config.eval.validated_tokens,
        context_length=run.plan.context_length,
        micro_batch=run.plan.micro_batch,
        dtype=run.learner.dtype,
    )


def _sample(run: Run) -> dict[str, float]:
    """Continue the configured prompts: one file for each step, and a page in TensorBoard."""
    seed = round_keys(run.config.seed, run.step)[0]
    texts = shared_samples(run, run.config.sample.max_tokens, seed)
    if run.ranks.is_main:
        _failing_as_value_error(lambda: _write_samples(run, texts))
    return {}


def shared_samples(run: Run, max_tokens: int, seed: int) -> list[str]:
    """The texts that continue the configured prompts, sampled by all ranks together.

    The batches do not depend on the number of ranks, so on the CPU the texts do not either.
    Raises: ValueError on every rank if sampling failed on one, for whatever reason.
    """
    config = run.config.sample
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        seed=seed,
        dtype=run.config.dtype,
        batch_size=-(-len(config.prompts) // _SAMPLE_BATCHES) or 1,
    )
    unfinished = start_samples(run.tokenizer, config.prompts, options)
    samples = sample_on_ranks(run.subject, unfinished, options, guard=_failing_as_value_error)
    return [sample.text for sample in samples]


def _failing_as_value_error(action: Callable[[], _T]) -> _T:
    """The result of a part without which training continues, whatever goes wrong in it."""
    try:
        return action()
    except (ValueError, OSError, FolderLost, StopAgreed):
        raise
    except Exception as error:
        raise ValueError(str(error)) from error


def _write_samples(run: Run, texts: Sequence[str]) -> None:
    samples = list(zip(run.config.sample.prompts, texts, strict=True))
    page = "\n\n".join(f"> {prompt or '<|endoftext|>'}\n{text}" for prompt, text in samples)
    run.folder.check()
    write_text(run.folder.samples / f"step_{run.step:06d}.txt", page + "\n")
    run.metrics.write_samples(run.step, samples)
