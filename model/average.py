"""Average the weights of several checkpoints of a run; the result is a checkpoint too.

    python model/average.py runs/demo --last 5 --out runs/demo-averaged
    python model/average.py runs/demo --from-step 600 --kind ema --decay 0.8 --out runs/demo-ema

Every checkpoint is verified, and must be of the same run. The result is evaluated, exported and
given to `--init` like any checkpoint. Training does not resume from it, because it has no state of
an optimizer.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from model.averaging.selection import NEWEST, Member, checkpoints_named, read_members
from model.averaging.weighted_mean import ema_shares, mean_shares, write_average
from storage.checkpoint_folder import is_step_name
from storage.option_values import check_at_least
from storage.script_options import parse_options
from storage.terminal.standard_output import tolerate_lost_output
from storage.user_errors import exit_on_user_error

_DECAY = 0.9
_LAST_HELP = f"Of a run's folder: average the N newest. Default: {NEWEST}; with --from-step, all."

log = logging.getLogger("model")


@dataclass(frozen=True)
class Arguments:
    """Average checkpoints of a run."""

    checkpoints: tyro.conf.Positional[tuple[Path, ...]]
    """The folder of a run, for its newest checkpoints, or the folders of two or more of them."""
    out: Path
    """Checkpoint folder to write; must not exist yet."""
    last: Annotated[int | None, tyro.conf.arg(help=_LAST_HELP)] = None
    from_step: int | None = None
    """Of a run's folder: average only checkpoints from this step on."""
    kind: Literal["mean", "ema"] = "mean"
    """mean: all count alike. ema: an exponential moving average, in which later ones count more."""
    decay: float | None = None
    """Of an ema: what a checkpoint counts, as a part of what the next one does. Default: 0.9."""
    allow_other_runs: bool = False
    """Also average checkpoints of several runs, of one shape and tokenizer; only as a mean."""

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise ValueError("name a run, or two checkpoints or more")
        if self.last is not None:
            check_at_least("last", self.last, 2)
        if self.from_step is not None:
            check_at_least("from_step", self.from_step, 0)
        if self.decay is not None and self.kind != "ema":
            raise ValueError(f"decay={self.decay} is of an ema; give --kind ema too, or omit it")
        if self.decay is not None and not 0 < self.decay < 1:
            raise ValueError(f"decay={self.decay} is out of range; use more than 0 and less than 1")
        if self.allow_other_runs and self.kind == "ema":
            raise ValueError(
                "--kind ema is in the order of one run's steps; average other runs with --kind mean"
            )
        if is_step_name(self.out.name):
            raise ValueError(
                f"--out {self.out} is named like a run's own checkpoint, from which a run would "
                "resume; give another name"
            )


def _summary(members: Sequence[Member], shares: Sequence[float]) -> str:
    """A row for each checkpoint with its share."""
    rows = [f"{'share':>8}  {'step':>8}  checkpoint"]
    for member, share in zip(members, shares, strict=True):
        step = "-" if member.step is None else str(member.step)
        rows.append(f"{share:8.4f}  {step:>8}  {member.path}")
    return "\n".join(rows)


def _average(arguments: Arguments) -> None:
    if arguments.out.exists():
        raise ValueError(f"--out {arguments.out} exists already; give another folder")
    paths = checkpoints_named(arguments.checkpoints, arguments.last, arguments.from_step)
    members = read_members(paths, arguments.allow_other_runs)
    how: dict[str, str | float] = {"kind": arguments.kind}
    if arguments.kind == "ema":
        how["decay"] = decay = _DECAY if arguments.decay is None else arguments.decay
        shares = ema_shares(len(members), decay)
    else:
        shares = mean_shares(len(members))
    write_average(members, shares, arguments.out, how)
    log.info("%s", _summary(members, shares))
    out = arguments.out
    log.info(
        "\n%s is their %s. Evaluate it: python eval/main.py --checkpoint %s --tasks val_loss\n"
        "Training does not resume from it; a new run can begin with its weights: --init %s",
        *(out, arguments.kind, out, out),
    )


def main() -> None:
    """Read the command line, and average."""
    tolerate_lost_output()
    arguments = parse_options(Arguments, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with exit_on_user_error(ValueError, OSError):
        _average(arguments)


if __name__ == "__main__":
    main()
