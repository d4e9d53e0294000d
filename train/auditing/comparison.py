"""A repeated segment beside what the run has recorded: the same bits, or how far apart."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from storage.checkpoint_folder import step_of
from train.auditing.recorded_run import RecordedRun
from train.auditing.reexecution import Repeated, validation_at
from train.checkpoints.host_copy import WEIGHTS
from train.checkpoints.run_position import load_position
from train.checkpoints.state_digest import read_digest, saved_tensors

_EXACT = ("data/first_window", "data/windows", "data/digest", "train/skipped")
_ROUNDED = ("train/loss", "train/grad_norm", "val/loss", "val/bits_per_byte")
_SAME_RATE = 1e-12  # relative, see train/auditing/chain.py
_ALLOWED_SHARE = 10.0
"""How many times as far as other micro-batches move a figure it may be, where bits may differ."""
# Ten times what rounding moved the demo at most in 180 steps: loss 1.1e-4, gradient norm 4.7e-4
# (bench/LOG.md, "how far a run of the same seed may differ").
_LEAST_ALLOWED_LOSS = 1e-3
_LEAST_ALLOWED_NORM = 5e-3  # relative
# Of the way that the tensors went in the segment.
_LEAST_ALLOWED_STATE = 1e-3


def exact_problems(run: RecordedRun, repeated: Repeated, stop: int) -> Iterator[str]:
    """A sentence for each kind of figure that is not the recorded one, bit for bit."""
    yield from _exactly_known(run, repeated)
    for key in _ROUNDED:
        yield from _differing(run, repeated, key, lambda a, b: a == b)
    yield from _beginning(run, repeated)
    yield from _validated(run, repeated, stop, {})
    recorded = _state_at(run, stop)
    if recorded is not None:
        yield from _position(run, repeated, stop)
        wrong = [n for n in recorded if not _equal(recorded[n], repeated.after.get(n))]
        missing = repeated.after.keys() - recorded.keys()
        if wrong or missing:
            names = [*wrong, *missing]
            shown = ", ".join(names[:3])
            yield f"state after step {stop - 1}: {len(names)} tensors differ ({shown})"


def close_problems(
    run: RecordedRun, repeated: Repeated, otherwise: Repeated, stop: int
) -> Iterator[str]:
    """The same with a tolerance for what is rounded: `otherwise` has other micro-batches."""
    allowed = tolerances(repeated, otherwise)
    yield from _exactly_known(run, repeated)
    for key in _ROUNDED:
        most = allowed.get(key, 0.0)
        yield from _differing(run, repeated, key, lambda a, b, most=most: abs(a - b) <= most)
    yield from _validated(run, repeated, stop, allowed)
    recorded = _state_at(run, stop)
    if recorded is None:
        return
    yield from _position(run, repeated, stop)
    if recorded.keys() != repeated.after.keys():
        yield f"state after step {stop - 1}: it has other tensors"
        return
    for group in sorted({_group(name) for name in recorded}):
        names = [name for name in recorded if _group(name) == group]
        for kind, distance in (("mean", _rms), ("largest", _largest)):
            way = distance(repeated.after, repeated.before, names) or 1.0
            share = distance(recorded, repeated.after, names) / way
            noise = distance(otherwise.after, repeated.after, names) / way
            if not share <= max(_LEAST_ALLOWED_STATE, _ALLOWED_SHARE * noise):
                yield (
                    f"state after step {stop - 1}: the {kind} difference of {group} is {share:.2g} "
                    f"of the way in the segment, by rounding it would be {noise:.2g}"
                )


def tolerances(repeated: Repeated, otherwise: Repeated) -> dict[str, float]:
    """How far each recorded figure may be from the repeated one."""
    found = {}
    for key in _ROUNDED:
        pairs = [
            (line[key], otherwise.lines[step][key])
            for step, line in repeated.lines.items()
            if key in line
        ]
        if key in repeated.results:
            pairs.append((repeated.results[key], otherwise.results[key]))
        noise = max((abs(a - b) for a, b in pairs if math.isfinite(a - b)), default=0.0)
        least = _LEAST_ALLOWED_LOSS
        if key == "train/grad_norm":
            least = _LEAST_ALLOWED_NORM * max((abs(a) for a, _ in pairs), default=0.0)
        if pairs:
            found[key] = max(least, _ALLOWED_SHARE * noise)
    return found


def _exactly_known(run: RecordedRun, repeated: Repeated) -> Iterator[str]:
    """What rounding cannot change: the data, the rate, and that there is a line."""
    if missing := [step for step in repeated.lines if step not in run.lines]:
        yield f"steps without a line: {len(missing)}, the first is step {missing[0]}"
    for key in _EXACT:
        yield from _differing(run, repeated, key, lambda a, b: a == b)
    yield from _differing(
        run, repeated, "train/lr", lambda a, b: math.isclose(a, b, rel_tol=_SAME_RATE)
    )


def _differing(run: RecordedRun, repeated: Repeated, key: str, same: Any) -> Iterator[str]:
    """A sentence if the lines have another value than the repeated steps."""
    found = []
    for step, line in repeated.lines.items():
        if step not in run.lines or (key not in line and key not in run.lines[step]):
            continue
        recorded, here = run.lines[step].get(key), _as_in_a_line(line.get(key))
        if not _matches(recorded, here, same):
            found.append((step, recorded, here))
    if found:
        step, recorded, here = found[0]
        yield (
            f"{key}: {len(found)} of {len(repeated.lines)} steps differ, first step {step}: "
            f"{recorded} recorded, {here} here"
        )


def _validated(
    run: RecordedRun, repeated: Repeated, stop: int, allowed: Mapping[str, float]
) -> Iterator[str]:
    """Whether the validation at the end is what its checkpoint says."""
    recorded = validation_at(run, stop)
    for key, here in repeated.results.items():
        most = allowed.get(key, 0.0)
        if not _matches(recorded.get(key), here, lambda a, b, most=most: abs(a - b) <= most):
            yield f"{key} after step {stop - 1}: {recorded.get(key)} recorded, {here} here"


def _matches(recorded: Any, here: Any, same: Any) -> bool:
    numbers = all(type(value) in (int, float) for value in (recorded, here))
    return bool(same(recorded, here)) if numbers else recorded == here


def _as_in_a_line(value: Any) -> Any:
    """A value that is not finite is null in metrics.jsonl."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _beginning(run: RecordedRun, repeated: Repeated) -> Iterator[str]:
    """Whether the chain begins with the weights that the seed, or --init, gives."""
    if min(repeated.lines, default=-1) != 0:
        return
    for checkpoint in run.checkpoints:
        record = read_digest(checkpoint)
        began = {} if record is None else record["began"]
        if began.get("step") == 0 and began.get("weights") != repeated.began:
            yield "the initial weights: the chain of digests begins with others"
            return


def _state_at(run: RecordedRun, step: int) -> Mapping[str, Tensor] | None:
    """The recorded state after `step` updates; None if no checkpoint of it is kept."""
    found = next((path for path in run.checkpoints if step_of(path) == step), None)
    return None if found is None else saved_tensors(found)


def _position(run: RecordedRun, repeated: Repeated, step: int) -> Iterator[str]:
    checkpoint = next(path for path in run.checkpoints if step_of(path) == step)
    recorded = load_position(checkpoint).next_window
    if recorded != repeated.next_window:
        yield f"{checkpoint.name} continues at window {recorded}, here {repeated.next_window}"


def _equal(recorded: Tensor, here: Tensor | None) -> bool:
    return (
        here is not None
        and recorded.dtype == here.dtype
        and recorded.shape == here.shape
        and torch.equal(recorded.reshape(-1).view(torch.uint8), here.reshape(-1).view(torch.uint8))
    )


def _group(name: str) -> str:
    """`weights`, or the optimizer's `exp_avg` and so on."""
    return "weights" if name.startswith(WEIGHTS) else name.split(".")[1]


def _rms(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: list[str]) -> float:
    squares = count = 0.0
    for name in names:
        difference = (one[name].double() - _like(one, other, name)).flatten()
        squares += float(difference.square().sum())
        count += difference.numel()
    return math.sqrt(squares / max(count, 1))


def _largest(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: list[str]) -> float:
    return max(float((one[n].double() - _like(one, other, n)).abs().max()) for n in names)


def _like(one: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str) -> Tensor:
    """The other's tensor; zeros before the optimizer has a state."""
    found = other.get(name)
    return torch.zeros_like(one[name]).double() if found is None else found.double()
