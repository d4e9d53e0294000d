"""The best validation of a run, and how many in a row have not improved on it since.

It travels with the last evaluation in a checkpoint (results.json), so a resumed run counts as if it
had never stopped. All ranks have the same validation loss, bit for bit, and so the same count.
"""

from dataclasses import asdict, dataclass
from typing import Any

from storage.json_lines import is_count, is_number
from storage.option_values import AtMost

_LOSS = "val/loss"


@dataclass(frozen=True)
class BestValidation:
    """The validation with the smallest loss so far."""

    step: int
    loss: float
    worse: int = 0
    """Validations since then, all of which were no better."""


def check_stop_when_worse(count: int | None, eval_every: int, keep_best: int) -> None:
    """Raises: ValueError if a run cannot stop after `count` validations that are no better."""
    if count is None or isinstance(count, AtMost):  # a preset's, which waits for validations
        return
    if count < 1:
        raise ValueError(
            f"stop_when_worse={count} is out of range; use 1 or more, or omit it to train all steps"
        )
    if not eval_every:
        raise ValueError(
            f"stop_when_worse={count} needs validations and eval.every=0 has none; give an "
            "--eval.every such as 100, or omit --stop-when-worse"
        )
    if not keep_best:
        raise ValueError(
            f"stop_when_worse={count} with save.keep_best=0 would delete the best checkpoint; give "
            "--save.keep-best 1 or more"
        )


def best_validation(results: dict[str, Any]) -> BestValidation | None:
    """The best validation up to an evaluation, as checkpoints keep it; None if there was none."""
    best = results.get("best")
    if isinstance(best, dict):
        step, loss, worse = (best.get(name) for name in ("step", "loss", "worse"))
        if is_count(step) and is_number(loss) and is_count(worse):
            return BestValidation(step, float(loss), worse)
    # An older version kept the last evaluation only.
    step, metrics = results.get("step"), results.get("metrics")
    loss = metrics.get(_LOSS) if isinstance(metrics, dict) else None
    return BestValidation(step, float(loss)) if is_count(step) and is_number(loss) else None


def results_after(before: dict[str, Any], step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    """The results of a new evaluation: its step, its metrics, and the best validation so far.

    An evaluation without validation, or whose validation failed, changes nothing about the best.
    """
    best, loss = best_validation(before), metrics.get(_LOSS)
    if loss is not None:
        if best is None or loss < best.loss:
            best = BestValidation(step, float(loss))
        else:
            best = BestValidation(best.step, best.loss, best.worse + 1)
    return {"step": step, "metrics": metrics} | ({"best": asdict(best)} if best else {})
