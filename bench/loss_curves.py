"""Loss curves of a step optimisation on and off: same data, same weights, one plot.

    python bench/loss_curves.py --data data/python_docs
    python bench/loss_curves.py --data data/fineweb_edu --shape gpt2 --batch-tokens 65536 \
        --micro-batch 64 --device cuda

How far two curves may be apart is set by what changes no mathematics at all: the plain path at half
the micro-batch, which only adds in another order. An optimisation passes if over the last 50 steps
its mean absolute difference from the plain path is no larger than that one's. Prints Markdown,
writes one JSON and one plot.
"""

import logging
import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import tyro

from bench.provenance import provenance
from model.presets import SHAPES
from parallel.ranks import Ranks, quiet_other_ranks, start, user_errors
from storage.atomic import write_json
from train.adamw import AdamWConfig
from train.build import build_run
from train.config import Config, EvalConfig, SampleConfig, SaveConfig
from train.inputs import check_inputs
from train.schedule import ScheduleConfig, learning_rate
from train.step import train_step
from train.values import LOSS

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "results" / "loss_curves.json"
LAST = 50  # steps that are compared

log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Train the same model with each optimisation on and off."""

    data: Path = Path("data/python_docs")
    """Data set folder."""
    shape: str = "demo"
    """Model shape by name."""
    steps: int = 300
    """Optimizer steps of each curve."""
    batch_tokens: int = 1024
    """Tokens of one step."""
    micro_batch: int = 8
    """Windows of a micro-step; the yardstick takes half."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the matrix products; the residual stream is tried with bfloat16 only."""
    lr: float = 1e-3
    """Largest learning rate."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    out: Path = OUT
    """Result file; the plot lies beside it."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"there is no shape {self.shape}; choose from {', '.join(SHAPES)}")
        if self.micro_batch % 2:
            raise ValueError(f"micro_batch={self.micro_batch} has no half; take an even number")
        if self.steps < LAST:
            raise ValueError(f"steps={self.steps} is less than the last {LAST} that are compared")


def curves_wanted(arguments: Arguments) -> dict[str, Config]:
    """The plain path, the yardstick, and every optimisation, by name."""
    plain = Config(
        data=arguments.data,
        steps=arguments.steps,
        batch_tokens=arguments.batch_tokens,
        micro_batch=arguments.micro_batch,
        dtype=arguments.dtype,
        compile="off",
        fused_loss="off",
        device=arguments.device,
        model=SHAPES[arguments.shape],
        optimizer=AdamWConfig(lr=arguments.lr),
        schedule=ScheduleConfig(warmup_steps=arguments.steps // 15),
        eval=EvalConfig(every=0, tasks_every=0, tasks=()),
        sample=SampleConfig(every=0),
        save=SaveConfig(every_minutes=0),
    )
    wanted = {
        "plain": plain,
        "plain, half the micro-batch": replace(plain, micro_batch=arguments.micro_batch // 2),
        "fused loss": replace(plain, fused_loss="on"),
    }
    if arguments.dtype == "bfloat16":
        wanted["bf16 residual stream"] = replace(plain, residual="bfloat16")
    return wanted


def curve(config: Config, ranks: Ranks, folder: Path) -> list[float]:
    """The loss of every step."""
    config = replace(config, out=folder)
    run = build_run(config, ranks, check_inputs(config, ranks))
    found = []
    for step in range(run.steps):
        lr = learning_rate(step, run.steps, config.optimizer.lr, config.schedule)
        found.append(train_step(run, run.loader.next_step(), lr, stop_wanted=False)[LOSS].item())
    run.close()
    return found


def judged(curves: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Mean absolute difference from the plain curve over the last steps, and the verdict."""
    plain, yardstick, *tried = curves
    last = curves[plain][-LAST:]
    gaps = {
        name: statistics.fmean(
            abs(own - other) for own, other in zip(curves[name][-LAST:], last, strict=True)
        )
        for name in (yardstick, *tried)
    }
    return {name: {"gap": gap, "passes": gap <= gaps[yardstick]} for name, gap in gaps.items()}


def table_of(curves: dict[str, list[float]], verdicts: dict[str, dict[str, Any]]) -> str:
    """The end of every curve as Markdown."""
    lines = [
        f"| | mean loss of the last {LAST} steps | mean absolute difference from plain | passes |",
        "| --- | --: | --: | --- |",
    ]
    for name, losses in curves.items():
        mean = statistics.fmean(losses[-LAST:])
        found = verdicts.get(name)
        gap = "" if found is None else f"{found['gap']:.2g}"
        verdict = "" if found is None else "yes" if found["passes"] else "no"
        lines.append(f"| {name} | {mean:.4f} | {gap} | {verdict} |")
    return "\n".join(lines)


def plot(curves: dict[str, list[float]], file: Path) -> None:
    """All curves, and below them their differences from the plain one."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True)
    plain, *others = curves
    for name, losses in curves.items():
        above.plot(losses, label=name, linewidth=0.9)
    for number, name in enumerate(others, start=1):
        gaps = [abs(a - b) for a, b in zip(curves[name], curves[plain], strict=True)]
        below.plot(gaps, label=name, linewidth=0.7, color=f"C{number}")
    above.set(ylabel="training loss, nats")
    below.set(ylabel="difference from plain", xlabel="step", yscale="log")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train every curve, compare, report."""
    quiet_other_ranks()
    with user_errors():
        arguments = tyro.cli(Arguments, description=__doc__)
        ranks = start(arguments.device)
        origin = provenance(("torch",))
        curves = {}
        with tempfile.TemporaryDirectory() as folder:
            for number, (name, config) in enumerate(curves_wanted(arguments).items()):
                curves[name] = curve(config, ranks, Path(folder) / str(number))
        verdicts = judged(curves)
        log.info("%s", table_of(curves, verdicts))
        settings = asdict(arguments) | {"data": arguments.data.name, "out": arguments.out.name}
        report = origin | {"settings": settings, "verdicts": verdicts, "curves": curves}
        write_json(arguments.out, report)
        plot(curves, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
