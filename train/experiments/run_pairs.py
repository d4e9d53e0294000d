"""Two groups of runs before a comparison: checked that they compare, and paired by seed."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from storage.run_folder import RunFolder
from train.checkpoints.config_changes import Change
from train.experiments.same_text import NATS, check_same_horizon, unit_of
from train.reporting.run_summary import Curve, RunSummary
from train.reporting.setting_differences import short_value, training_differences

NAMES = ("A", "B")
_SEED = "seed"
# What a run says that ended itself because it could no longer learn (train/checks.py).
_DIVERGED = re.compile(r"loss or gradient that is not finite|were spikes; their updates")
_MACHINE = ("device", "cpu", "threads", "world_size")


@dataclass(frozen=True)
class RunEnd:
    """A run and the loss that counts of it."""

    run: RunSummary
    loss: float
    """At its last validation; of a run that diverged, the largest of all its validations."""
    diverged: bool


@dataclass(frozen=True)
class RunPairs:
    """Two groups that compare. If `paired`, the runs at the same place have the same seed."""

    a: tuple[RunEnd, ...]
    b: tuple[RunEnd, ...]
    paired: bool
    unit: str
    """Of the losses: nats per token, or bits per byte."""
    differences: dict[str, tuple[Any, Any]]
    """The settings in which B differs from A, each with the values of A and B."""
    notes: tuple[str, ...]
    """What a reader must know."""

    @property
    def same_batches(self) -> bool:
        """Whether the two runs of a pair read the same tokens in each step."""
        decide = ("batch_tokens", "context_length", "skip_windows")
        return self.paired and not any(key in self.differences for key in decide)


def has_diverged(folder: RunFolder) -> bool:
    """Whether the run in a folder ended itself because it no longer learned."""
    return _says_diverged(folder.read_status() or {})


def _says_diverged(status: dict[str, Any]) -> bool:
    return status.get("state") == "failed" and bool(_DIVERGED.search(status.get("reason") or ""))


def pair_runs(
    a: Sequence[RunSummary],
    b: Sequence[RunSummary],
    at: int | None = None,
    same_horizon: bool = True,
) -> RunPairs:
    """The groups, if they compare; `at`: as they were after this step.

    The seeds that both groups have are pairs, if they are at least half of either group; otherwise
    the groups are compared as wholes. `same_horizon` is False where the tokens trained on are
    themselves what is compared.
    Raises: ValueError if a run has not ended, if a group has one seed twice or mixes settings, or
    if the groups differ in their data, their validation or their horizon.
    """
    groups = [a, b]
    for name, runs in zip(NAMES, groups, strict=True):
        _check_group(name, runs)
    unit, notes = unit_of([*a, *b])
    if same_horizon:
        check_same_horizon(a[0], b[0], unit)
    groups = [[_end(run, unit, at) for run in runs] for runs in groups]
    notes += _notes_on_divergence(groups)
    notes += _notes_on_settings(a, b)
    shared = {end.run.seed for end in groups[0]} & {end.run.seed for end in groups[1]}
    paired = 2 * len(shared) >= max(len(a), len(b))
    if paired:
        notes += _left_out(groups, shared)
        groups = [_in_order(ends, shared) for ends in groups]
    else:
        notes.append(
            f"no pairs: A has the seeds {_seeds(a)}, B {_seeds(b)}; so the groups are compared by "
            "Welch's t, which needs more runs than pairs do"
        )
    return RunPairs(
        tuple(groups[0]),
        tuple(groups[1]),
        paired,
        unit,
        {key: (x, y) for key, (x, y) in _differences(a[0], b[0]).items()},
        tuple(notes),
    )


def _check_group(name: str, runs: Sequence[RunSummary]) -> None:
    """Raises: ValueError if a group cannot be one side of a comparison."""
    if not runs:
        raise ValueError(f"{name} has no run; give its run folders")
    counts = Counter(run.seed for run in runs)
    for seed, count in counts.items():
        if count > 1:
            same = ", ".join(run.path for run in runs if run.seed == seed)
            raise ValueError(
                f"{name} has seed {seed} {count} times ({same}); a run that is repeated says "
                "nothing new: give each seed once"
            )
    mixed = {key: values for key, values in training_differences(runs).items() if _decides(key)}
    if mixed:
        key, values = next(iter(mixed.items()))
        shown = ", ".join(dict.fromkeys(map(short_value, values)))
        raise ValueError(
            f"the runs of {name} differ in {key} ({shown}); a group differs in its seed only: "
            "leave out those that do not belong to it"
        )


def _decides(key: str) -> bool:
    """Whether a setting decides more than rounding."""
    return key != _SEED and Change(key, None, None).rule[0] != "free"


def _differences(a: RunSummary, b: RunSummary) -> dict[str, list[Any]]:
    found = training_differences([a, b])
    found.pop(_SEED, None)
    return found


def _end(run: RunSummary, unit: str, at: int | None) -> RunEnd:
    """What counts of a run. Raises: ValueError if it has not ended, or was not validated then."""
    curve = run.val_curve if unit == NATS else run.bits_curve
    if _says_diverged({"state": run.state, "reason": run.reason}):
        if not curve.loss:
            raise ValueError(f"{run.path} diverged before its first validation; leave it out")
        return RunEnd(run, max(curve.loss), True)
    step = run.steps if at is None else at
    if at is None and run.state == "finished" and run.steps_done < run.steps:
        raise ValueError(
            f"{run.path} ended after {run.steps_done} of {run.steps} steps, where it had stopped "
            "improving; give --at STEP to compare all runs after a step that all have reached"
        )
    if at is None and run.steps_done < run.steps:
        raise ValueError(
            f"{run.path} has {run.steps_done} of {run.steps} steps ({run.state}); finish it, or "
            "give --at STEP to compare all runs after a step that all have reached"
        )
    tokens = step * run.batch_tokens
    if tokens not in curve.tokens:
        known = ", ".join(f"{point // run.batch_tokens:.0f}" for point in curve.tokens[-6:])
        has = f"its last validations were at {known}" if known else "it has no validation"
        raise ValueError(
            f"{run.path} was not validated after step {step} ({has}); give --at with a step at "
            "which all were"
        )
    last = list(curve.tokens).index(tokens)
    if at is not None:
        run = _up_to(run, tokens)
    return RunEnd(run, curve.loss[last], False)


def _up_to(run: RunSummary, tokens: int) -> RunSummary:
    """The run as if it had ended after this many tokens."""

    def cut(curve: Curve) -> Curve:
        points = zip(curve.tokens, curve.seconds, curve.loss, strict=True)
        kept = [point for point in points if point[0] <= tokens]
        return Curve(*([point[i] for point in kept] for i in range(3)))

    val = cut(run.val_curve)
    return replace(
        run,
        val_curve=val,
        bits_curve=cut(run.bits_curve),
        train_curve=cut(run.train_curve),
        tokens=tokens,
        train_seconds=val.seconds[-1] if val.seconds else math.nan,
    )


def _notes_on_divergence(groups: Sequence[Sequence[RunEnd]]) -> Iterator[str]:
    for name, ends in zip(NAMES, groups, strict=True):
        bad = [end.run.seed for end in ends if end.diverged]
        if bad:
            yield (
                f"{len(bad)} of {len(ends)} runs of {name} diverged (seed "
                f"{', '.join(map(str, sorted(bad)))}); each counts with the largest loss of its "
                "validations, usually that before the first step"
            )


def _notes_on_settings(a: Sequence[RunSummary], b: Sequence[RunSummary]) -> Iterator[str]:
    if not _differences(a[0], b[0]):
        yield "A and B have the same settings"
    for name, runs in zip(NAMES, (a, b), strict=True):
        rounding = [key for key in training_differences(runs) if key != _SEED]
        if rounding:
            yield f"the runs of {name} also differ in {', '.join(rounding)}, which only rounds"
    for fact in _MACHINE:
        values = dict.fromkeys(short_value(run.facts.get(fact)) for run in (*a, *b))
        if len(values) > 1:
            yield f"the runs differ in {fact} ({', '.join(values)}), so seconds do not compare"


def _left_out(groups: Sequence[Sequence[RunEnd]], shared: set[int]) -> Iterator[str]:
    for name, ends in zip(NAMES, groups, strict=True):
        alone = sorted({end.run.seed for end in ends} - shared)
        if alone:
            seeds = ", ".join(map(str, alone))
            yield f"left out of {name}, as the other group has no such seed: {seeds}"


def _in_order(ends: Sequence[RunEnd], shared: set[int]) -> list[RunEnd]:
    return sorted((e for e in ends if e.run.seed in shared), key=lambda end: end.run.seed)


def _seeds(runs: Sequence[RunSummary]) -> str:
    return ", ".join(str(seed) for seed in sorted(run.seed for run in runs))
