"""What mixing data sets costs the loader, and the shares that a run had, as a picture.

    python bench/mixture.py
    python bench/mixture.py --run runs/mixture

The first command needs no data: it makes up three data sets, by default with as many documents as
FineWeb-Edu's sample-10BT has, and reads the windows of steps with their digests from one of them
and from a mixture of all three, by turns. Out: results/mixture.json and a table. The second one
draws how many windows of each source a run on a mixture had read at each step.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.order import SyntheticShards, synthetic_lengths, write_tokens
from bench.provenance import RESULTS, provenance
from data_prep.order.mixture_stream import stream_of
from data_prep.order.shares import Assignment, WeightStretch, in_windows
from data_prep.order.training_stream import TrainingStream
from data_prep.order.weights import folders_and_weights
from data_prep.order.windows import OneSource, WindowStream
from parallel.ranks import start
from storage.atomic import write_json
from storage.json_lines import read_metrics
from storage.option_values import check_at_least
from storage.run_folder import RunFolder
from storage.script_options import parse_options
from train.batch_plan import BatchPlan
from train.checkpoints.recorded_config import recorded_config
from train.config import Config
from train.experiments.intervals import mean_interval
from train.loader import Loader

_T = 1024
_WINDOWS, _MICRO_BATCH = 512, 16
_WEIGHTS = ("0.7", "0.2", "0.1")
_TURNS = ("three", "one", "one", "three")


@dataclass(frozen=True)
class Options:
    """Measure the loader on one data set and on a mixture of three."""

    documents: int = 9_672_101
    """Documents of each synthetic data set."""
    file_tokens: int = 400_000_000
    """Tokens of the scratch file that all share. It must fit the page cache."""
    rounds: int = 40
    """Rounds, each of two turns with one and with three. The table has the mean of their ratios."""
    steps: int = 20
    """Steps of a turn, 0.5M tokens each."""
    run: Path | None = None
    """Measure nothing: draw the shares of the run in this folder."""
    out: Path | None = None
    """Result file. Default: results/mixture.json, or with --run results/mixture.png."""

    def __post_init__(self) -> None:
        check_at_least("rounds", self.rounds, 2)
        check_at_least("documents", self.documents, 1)
        check_at_least("steps", self.steps, 1)


def _streams(folder: Path, options: Options) -> list[TrainingStream]:
    """Three data sets of different lengths over one scratch file, none with a stored index."""
    file = options.file_tokens
    lengths = synthetic_lengths(options.documents)
    return [
        TrainingStream(SyntheticShards(folder, np.roll(lengths, n), file), 1337, False)
        for n in range(len(_WEIGHTS))
    ]


def _turn(loader: Loader, steps: int) -> float:
    """CPU seconds of the windows of some steps."""
    began = time.process_time()
    for _ in range(steps):
        loader.next_step()
    return time.process_time() - began


def _measure(folder: Path, options: Options) -> dict[str, Any]:
    """Seconds of all three indexes, and CPU seconds of each turn."""
    write_tokens(folder / "tokens.bin", options.file_tokens)
    (folder / "tokens.bin").read_bytes()  # into the page cache
    streams = _streams(folder, options)
    began, cpu = time.perf_counter(), time.process_time()
    for stream in streams:
        stream.index(0)
    found: dict[str, Any] = {
        "index_seconds": time.perf_counter() - began,
        "index_cpu_seconds": time.process_time() - cpu,
    }
    weights = in_windows([Fraction(weight) for weight in _WEIGHTS])
    mixed = stream_of(streams, Assignment([WeightStretch(0, weights)]))
    torch.set_num_threads(1)  # threads that wait for one another would count
    ranks, plan = start("cpu"), BatchPlan(_T, _WINDOWS, _MICRO_BATCH, 1)
    kinds: dict[str, WindowStream] = {"one": OneSource(streams[0]), "three": mixed}
    loaders = {name: Loader(stream, plan, ranks, 0) for name, stream in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for round_ in range(options.rounds + 1):
        for name in _TURNS:
            spent = _turn(loaders[name], options.steps)
            if round_:
                seconds[name].append(spent)
    for loader in loaders.values():
        loader.close()
    return found | {"cpu_seconds": seconds}


def _table(found: dict[str, Any], options: Options) -> str:
    three, one = found["cpu_seconds"]["three"], found["cpu_seconds"]["one"]
    ratio = mean_interval(
        [sum(three[i : i + 2]) / sum(one[i : i + 2]) for i in range(0, len(three), 2)]
    )
    speed = options.steps * _WINDOWS * _T / np.median(one) / 1e6
    return (
        f"index of an epoch of 3 x {options.documents:,} documents: "
        f"{found['index_seconds']:.2f} s ({found['index_cpu_seconds']:.2f} CPU s)\n"
        f"one source with the digest: {speed:.0f}M tokens / CPU s\n"
        f"three sources / one, CPU time of a token: {ratio.mean:.3f} ({ratio.low:.3f} to "
        f"{ratio.high:.3f}; mean of {ratio.count} rounds, 95 % interval); of the medians of the "
        f"turns: {np.median(three) / np.median(one):.3f}"
    )


def _draw(run: Path, path: Path) -> str:
    """Draw the shares of a run's steps, and how far each source is from its target."""
    import matplotlib.pyplot as plt

    lines = [line for line in read_metrics(RunFolder(run).metrics) if "data/first_window" in line]
    names = [
        key.removeprefix("data/").removesuffix("/share")
        for key in (lines[0] if lines else {})
        if key.startswith("data/") and key.endswith("/share")
    ]
    config = recorded_config(RunFolder(run))
    if not names or config is None:
        raise ValueError(
            f"{run} has no step of a mixture; name the folder of a run on several data sets"
        )
    steps = np.array([line["step"] for line in lines]) + 1
    size = np.array([line["data/windows"] for line in lines])
    shares = np.array([[line[f"data/{name}/share"] for name in names] for line in lines])
    weights = np.array([_weights_at(config, line["step"]) for line in lines])
    own, target = shares * size[:, None], weights * size[:, None]
    off = np.zeros_like(own)  # since the last change, where a new count begins
    for first, stop in pairwise([0, *(c.step for c in config.weight_changes), len(lines)]):
        off[first:stop] = np.cumsum((own - target)[first:stop], axis=0)
    figure, panels = plt.subplots(3, 1, sharex=True, figsize=(8, 8), layout="constrained")
    for number, name in enumerate(names):
        color = f"C{number}"
        panels[0].plot(steps, shares[:, number], ".", ms=3, color=color, label=name)
        panels[0].plot(steps, weights[:, number], color=color, drawstyle="steps-post", alpha=0.5)
        panels[1].plot(steps, off[:, number], ".-", ms=3, lw=0.5, color=color)
        panels[2].plot(steps, [line[f"data/{name}/epochs"] for line in lines], color=color)
    panels[0].set(ylabel="share of a step's windows", title=f"{run.name}: shares and weights")
    panels[1].set(ylabel="windows off the target", ylim=(-1.1, 1.1))
    panels[1].axhline(1, color="gray", lw=0.5)
    panels[1].axhline(-1, color="gray", lw=0.5)
    panels[2].set(ylabel="epochs read", xlabel="step")
    panels[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    most = np.abs(off).max()
    return f"{path}: {len(lines)} steps of {len(names)} sources, at most {most:.2f} windows off"


def _weights_at(config: Config, step: int) -> list[float]:
    """The shares that the sources are to have at a step."""
    weights = [place.weight for place in folders_and_weights(config.data)]
    for change in config.weight_changes:
        if change.step <= step:
            weights = [*change.weights]
    return [float(weight / sum(weights)) for weight in weights]


def main() -> None:
    """Measure and print the table, or draw the picture."""
    options = parse_options(Options, description=__doc__)
    if options.run is not None:
        text = _draw(options.run, options.out or RESULTS / "mixture.png")
    else:
        head: dict[str, Any] = provenance(("numpy",))
        with tempfile.TemporaryDirectory() as name:
            found = _measure(Path(name), options)
        rows = {
            "documents": options.documents,
            "tokens_of_a_turn": options.steps * _WINDOWS * _T,
            **found,
        }
        write_json(options.out or RESULTS / "mixture.json", head | rows)
        text = _table(found, options)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
