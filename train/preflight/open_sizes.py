"""Sizes that a preset leaves open: validation, its intervals, and the warm-up."""

import logging
from dataclasses import dataclass, replace
from typing import Any

from data_prep.order.training_data import TrainingData
from eval.tasks.mixture_loss import mixture_tokens
from storage.option_values import AtMost
from train.batch_plan import BatchPlan
from train.config import Config
from train.mixture import steps_of_mixture
from train.schedule import check_phases

_LEAST_POINTS = 5  # of a curve
_FEW_STEPS = 100  # in one epoch: too few to learn much, a smaller batch gives more
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordedSizes:
    """What the run that is continued chose; None if there is none, or it is not readable."""

    val_tokens: int | None = None
    warmup_steps: int | None = None

    @classmethod
    def of(cls, settings: dict[str, Any] | None) -> "RecordedSizes":
        """From the settings in a config.json."""
        groups = settings or {}
        return cls(
            _whole_number(groups.get("eval"), "val_tokens"),
            _whole_number(groups.get("schedule"), "warmup_steps"),
        )


def _whole_number(group: Any, key: str) -> int | None:
    value = group.get(key) if isinstance(group, dict) else None
    return value if type(value) is int else None


def with_sizes(config: Config, val_tokens: int, warmup_steps: int | float, steps: int) -> Config:
    """The configuration of a run of `steps` steps, with what a preset left open.

    Without validation nothing is stopped for being worse.
    """
    own, sample = config.eval, config.sample
    return replace(
        config,
        eval=replace(own, val_tokens=val_tokens, every=_fitted(own.every, steps)),
        sample=replace(sample, every=_fitted(sample.every, steps)),
        schedule=replace(config.schedule, warmup_steps=warmup_steps),
        stop_when_worse=config.stop_when_worse if own.every and config.save.keep_best else None,
    )


def _fitted(every: int, steps: int) -> int:
    """Steps between two evaluations: a preset's number, or fewer for five of them in the run."""
    return int(min(every, max(1, steps // _LEAST_POINTS)) if isinstance(every, AtMost) else every)


def run_length(config: Config, data: TrainingData, plan: BatchPlan) -> int:
    """The number of steps: as configured, or one epoch."""
    steps = config.steps or steps_of_mixture(config, data)
    if config.steps is None and steps < _FEW_STEPS < plan.windows * steps:
        batch = max(plan.tokens * steps // _FEW_STEPS // plan.context_length, 1)
        log.warning(
            "one epoch of %s is only %d steps of batch_tokens=%d; --batch-tokens %d would make it "
            "about %d",
            config.data_text,
            steps,
            plan.tokens,
            batch * plan.context_length,
            _FEW_STEPS,
        )
    return steps


def choose_warmup(config: Config, steps: int, recorded: RecordedSizes) -> int | float:
    """The steps of warm-up. Raises: ValueError if the user's schedule does not fit in `steps`."""
    own, before = config.schedule.warmup_steps, recorded.warmup_steps
    if isinstance(own, AtMost) and before is not None and before < min(own, steps):
        check_phases(steps, replace(config.schedule, warmup_steps=before))
        return before
    warmup = config.warmup_steps_for(steps)
    if warmup != own:
        log.info("warm-up: %d of %d steps, since the preset's %d do not fit", warmup, steps, own)
    return warmup


def choose_validation(
    config: Config, data: TrainingData, context_length: int, recorded: RecordedSizes
) -> int:
    """The tokens of a validation. Raises: ValueError if the data hold fewer than the user gave."""
    wanted, before = config.eval.validated_tokens, recorded.val_tokens
    if not config.eval.every:  # an evaluation of the checkpoints may take fewer
        return int(wanted)
    if isinstance(wanted, AtMost) and before is not None and 0 < before < wanted:
        wanted = AtMost(before)
    try:
        found = mixture_tokens(data, wanted, context_length, "--eval.val-tokens")
    except ValueError as error:
        if data.val_tokens > context_length:
            raise
        raise ValueError(f"{error}, or train without validation: --eval.every 0") from error
    if found < wanted:
        log.info("validation: %s tokens, all whole windows of %s", f"{found:,}", config.data_text)
    return found
