"""What an average of checkpoints brings: its validation loss beside the last checkpoint's.

    python bench/averaging.py runs/demo_s1 runs/demo_s2 runs/demo_s3

The runs have the same settings but for the seed, and kept checkpoints (`--save.keep-every`). Each
run is one pair: the average of its newest checkpoints less its last checkpoint, on the validation
tokens of its training. Writes JSON and prints Markdown.
"""

import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro

from bench.provenance import RESULTS, provenance
from eval.subject import EvalOptions, subject_of, with_checkpoint_defaults
from eval.tasks.registry import measure, raise_failures
from model.averaging.selection import checkpoints_named, read_members
from model.averaging.weighted_mean import ema_shares, mean_shares, write_average
from parallel.ranks import Ranks, start, stop, user_errors
from storage.atomic import write_json
from storage.checkpoint_folder import step_of
from storage.script_options import parse_options
from train.experiments.paired_test import GroupDifference, compare_pairs

_LOSS = "val/loss"
_LAST = "last checkpoint"

log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Compare averages of checkpoints with the last checkpoint, over runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, one for each seed."""
    last: tuple[int, ...] = (2, 3, 5, 10)
    """Averages of the N newest checkpoints."""
    decay: tuple[float, ...] = (0.8,)
    """Exponential moving averages of the largest of these numbers, by decay."""
    every: int = 1
    """Take every N-th checkpoint only, from the last one back."""
    until: int | None = None
    """The last checkpoint is that of this step, such as one from before the decay of the rate."""
    data: Path | None = None
    """Data set folder. Default: that of the training."""
    results: Path = RESULTS / "averaging.json"
    """Result file."""

    def __post_init__(self) -> None:
        if not self.last or min(self.last) < 2:
            raise ValueError(
                f"last={self.last} has no average of two or more; give some, such as 5"
            )
        if self.every < 1:
            raise ValueError(f"every={self.every} is out of range; use 1 or more")


def _losses(run: Path, arguments: Arguments, ranks: Ranks) -> dict[str, float]:
    """The validation loss of a run's last checkpoint, and of each average, by its name."""
    most = max(arguments.last)
    found = [path for path in checkpoints_named([run], None, 0) if _is_in(path, arguments.until)]
    chosen = found[:: arguments.every][:most]
    if len(chosen) < most:
        raise ValueError(
            f"{run} has {len(chosen)} checkpoints of these, fewer than last={most}; give smaller "
            "numbers, or train with --save.keep-every N"
        )
    members = read_members(chosen, other_runs=False)
    losses = {_LAST: _loss(members[-1].path, arguments.data, ranks)}
    for name, count, shares in _averages(arguments):
        with TemporaryDirectory() as folder:
            out = Path(folder) / "average"
            write_average(members[-count:], shares, out, {"kind": name})
            losses[name] = _loss(out, arguments.data, ranks)
    log.info("%s: %s", run, ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
    return losses


def _is_in(checkpoint: Path, until: int | None) -> bool:
    return until is None or step_of(checkpoint) <= until


def _averages(arguments: Arguments) -> Iterator[tuple[str, int, list[float]]]:
    """Name, number of checkpoints and shares of each average."""
    for count in arguments.last:
        yield f"mean of {count}", count, mean_shares(count)
    most = max(arguments.last)
    for decay in arguments.decay:
        yield f"ema {decay} of {most}", most, ema_shares(most, decay)


def _loss(checkpoint: Path, data: Path | None, ranks: Ranks) -> float:
    options = with_checkpoint_defaults(checkpoint, EvalOptions(data=(data,) if data else ()))
    found = measure(subject_of(checkpoint, ranks), options, ("val_loss",))
    raise_failures(found)
    return found.tags[_LOSS]


def _table(differences: dict[str, GroupDifference]) -> str:
    lines = ["| average | validation loss, less the last checkpoint's | |", "| --- | --: | --- |"]
    for name, found in differences.items():
        own = found.interval
        verdict = "not told apart"
        if found.told_apart:
            verdict = "better" if own.mean < 0 else "worse"
        lines.append(f"| {name} | {own.mean:+.4f} ± {own.half_width:.4f} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    """Average and evaluate the checkpoints of every run, and compare."""
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        if len(arguments.runs) < 2:
            raise ValueError("one run says nothing of another seed; name two runs or more")
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        head = provenance(("torch", "scipy"))
        ranks = start("cpu")
        each = {run.name: _losses(run, arguments, ranks) for run in arguments.runs}
        columns = {name: [own[name] for own in each.values()] for name in next(iter(each.values()))}
        last = columns.pop(_LAST)
        differences = {name: compare_pairs(last, own) for name, own in columns.items()}
        settings: dict[str, Any] = {
            k: getattr(arguments, k) for k in ("last", "decay", "every", "until")
        }
        result = {"losses": each, "differences": {n: asdict(d) for n, d in differences.items()}}
        write_json(arguments.results, head | {"settings": settings} | result)
        log.info(
            "%s\n%d runs, 95 %% intervals of paired differences", _table(differences), len(each)
        )
    stop()


if __name__ == "__main__":
    main()
