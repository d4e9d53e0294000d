"""Loss curves with each optimisation of the step on and off, from the same weights and data.

    SCRIPT=bench/loss_curves.py launch/node.sh --data data/python_docs
    python bench/loss_curves.py --data data/fineweb_edu --shape gpt2 --batch-tokens 65536 \
        --micro-batch 64 --device cuda

A reference curve shows how much rounding alone changes the loss: the plain step with half of the
micro-batch, which only adds in another order. An optimisation passes if its mean absolute
difference from the plain curve, over the last 50 steps, is at most that of the reference.
Compression of gradients needs several ranks, which launch/node.sh starts.

The result is written after every curve, and the same command continues an interrupted call.
Prints Markdown and writes one JSON file and one plot.
"""

import logging
import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from bench.bare_run import BARE, NETWORKS, bare_learner, bare_loader, check_shape
from bench.figure import figure
from bench.provenance import RESULTS, provenance
from parallel.collectives import broadcast_object
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from storage.atomic import read_json, write_json
from storage.script_options import parse_options
from train.config import Config
from train.optimizers.adamw import AdamWConfig
from train.schedule import ScheduleConfig, learning_rate
from train.step import LOSS

_OUT = RESULTS / "loss_curves.json"
LAST = 50  # steps of a curve that are compared
PLAIN, REFERENCE = "plain", "plain, half the micro-batch"
# Keys of the report that must be the same to continue an earlier call.
_SAME = ("settings", "versions", "commit", "ranks", "threads")

log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Train the same model with each optimisation on and off, and compare the losses."""

    data: Path = Path("data/python_docs")
    """Data set folder."""
    shape: str = "deep"
    """Model shape by name; deep has 12 layers, width 128 and context length 128."""
    steps: int = 300
    """Optimizer steps of each curve."""
    batch_tokens: int = 512
    """Tokens of one step."""
    micro_batch: int = 2
    """Windows of a micro-step; the reference curve uses half."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the matrix products. Only bfloat16 includes a curve of the residual stream."""
    lr: float = 1e-3
    """Largest learning rate."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on."""
    out: Path = _OUT
    """Result file; the plot is written beside it."""

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if self.micro_batch % 2:
            raise ValueError(f"micro_batch={self.micro_batch} has no half; use an even number")
        if self.steps < LAST:
            raise ValueError(
                f"steps={self.steps} is less than the {LAST} that are compared; use {LAST} or more"
            )


def _curve_configs(arguments: Arguments, world_size: int) -> dict[str, Config]:
    """By name: the plain step, the reference, each optimisation, all optimisations together."""
    plain = replace(
        BARE,
        data=(arguments.data,),
        steps=arguments.steps,
        batch_tokens=arguments.batch_tokens,
        micro_batch=arguments.micro_batch,
        dtype=arguments.dtype,
        compile="off",
        fused_loss="off",
        device=arguments.device,
        model=NETWORKS[arguments.shape],
        optimizer=AdamWConfig(lr=arguments.lr),
        schedule=ScheduleConfig(warmup_steps=arguments.steps // 15),
    )
    changes: dict[str, dict[str, Any]] = {
        "fused loss": {"fused_loss": "on"},
        "compiled": {"compile": "on"},
    }
    if arguments.dtype == "bfloat16":
        changes["bf16 residual stream"] = {"residual": "bfloat16"}
    if world_size > 1:
        changes["bf16 gradients between ranks"] = {"gradient_compression": "bfloat16"}
    changes["all of these"] = {key: value for one in changes.values() for key, value in one.items()}
    half = replace(plain, micro_batch=arguments.micro_batch // 2)
    return {PLAIN: plain, REFERENCE: half} | {
        name: replace(plain, **change) for name, change in changes.items()
    }


def _curve(config: Config, ranks: Ranks) -> list[float]:
    """The loss of every step."""
    steps = config.steps or 0
    learner = bare_learner(config, ranks)
    loader = bare_loader(config, learner)
    found = []
    for step in range(steps):
        lr = learning_rate(step, steps, config.optimizer.lr, config.schedule)
        found.append(learner.step(loader.next_step(), lr)[LOSS])
    loader.close()
    torch.compiler.reset()
    return torch.stack(found).tolist()


def verdicts_of(curves: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """How much each curve differs from the plain one in its last steps, and whether it passes.

    `gap`, the mean absolute difference, decides. `shift` is the mean difference, `shift_error` its
    standard error if steps were independent. They are not: the shift of the reference, which
    should be zero, is many standard errors.
    """
    found = {}
    for name in curves.keys() - {PLAIN}:
        pairs = zip(curves[name][-LAST:], curves[PLAIN][-LAST:], strict=True)
        differences = [own - other for own, other in pairs]
        found[name] = {
            "gap": statistics.fmean(map(abs, differences)),
            "shift": statistics.fmean(differences),
            "shift_error": statistics.stdev(differences) / math.sqrt(LAST),
        }
    bound = found[REFERENCE]["gap"]
    return {
        name: found[name] | {"passes": found[name]["gap"] <= bound}
        for name in curves
        if name in found
    }


def _table_of(curves: dict[str, list[float]], verdicts: dict[str, dict[str, Any]]) -> str:
    """The last steps of every curve as Markdown."""
    lines = [
        f"| | mean loss of the last {LAST} steps | mean absolute difference from plain | passes "
        "| mean difference |",
        "| --- | --: | --: | --- | --: |",
    ]
    for name, losses in curves.items():
        cells = [name, f"{statistics.fmean(losses[-LAST:]):.4f}", "", "", ""]
        if name in verdicts:
            found = verdicts[name]
            shift = f"{found['shift']:+.1e} ± {found['shift_error']:.0e}"
            cells[2:] = [f"{found['gap']:.2g}", "yes" if found["passes"] else "no", shift]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plot(curves: dict[str, list[float]], file: Path) -> None:
    """Plot all curves, and below them their differences from the plain one."""
    with figure(file, (8, 7), panels=2) as (above, below):
        for name, losses in curves.items():
            above.plot(losses, label=name, linewidth=0.9)
        for number, name in enumerate(curves):
            gaps = [abs(a - b) for a, b in zip(curves[name], curves[PLAIN], strict=True)]
            if name != PLAIN:
                below.plot(gaps, label=name, linewidth=0.7, color=f"C{number}")
        above.set(ylabel="training loss, nats")
        below.set(ylabel="difference from plain, nats", xlabel="step", yscale="log")


def _earlier_or_new_report(arguments: Arguments, ranks: Ranks) -> dict[str, Any]:
    """The report of an interrupted call with the same settings, or a new one."""
    settings = asdict(arguments) | {"data": arguments.data.name, "out": arguments.out.name}
    report = provenance(("torch",)) | {"settings": settings, "ranks": ranks.world_size}
    report |= {"threads": torch.get_num_threads(), "seconds": {}, "curves": {}}
    if arguments.out.exists():
        earlier = read_json(arguments.out)
        if all(earlier.get(key) == report[key] for key in _SAME):
            log.info("continuing %s, which has: %s", arguments.out, ", ".join(earlier["curves"]))
            return earlier
    return report


def main() -> None:
    """Train every missing curve, compare, report."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start(arguments.device)
        report = broadcast_object(_earlier_or_new_report(arguments, ranks))
        curves = report["curves"]
        for name, config in _curve_configs(arguments, ranks.world_size).items():
            if name in curves:
                continue
            begin = time.perf_counter()
            curves[name] = _curve(config, ranks)
            report["seconds"][name] = time.perf_counter() - begin
            if len(curves) > 1:
                report["verdicts"] = verdicts_of(curves)
            if ranks.is_main:
                write_json(arguments.out, report)
                log.info("%s: %.0f s", name, report["seconds"][name])
        if ranks.is_main:
            log.info("%s", _table_of(curves, report["verdicts"]))
            _plot(curves, arguments.out.with_suffix(".png"))
    stop()


if __name__ == "__main__":
    main()
