"""HellaSwag items a second: our trees in batches against one item, four rows, at a time.

    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 120

The stand-in does what build-nanogpt's `hellaswag.py` is known to do: four rows an item, padded to
its longest, the logits of all positions. Both score the same items by turns; what counts is the
ratio. Prints Markdown, writes one JSON.
"""

import logging
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.nn import functional as F

from data_prep.tokenizer import gpt2_tokenizer
from eval.hellaswag import items_from_file
from eval.multiple_choice import Item, score_items
from eval.subject import EvalOptions, Subject, evaluating
from model.gpt import GPT
from model.precision import autocast, choose_dtype
from model.presets import SHAPES
from parallel.ranks import quiet_other_ranks, start, user_errors
from storage.atomic import write_json

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "results" / "hellaswag_speed.json"

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Time both ways of scoring HellaSwag."""

    hellaswag_file: Path
    """Items as .jsonl, .jsonl.xz or .jsonl.gz."""
    items: int = 120
    """Taken from the file at even distances, so that both of its halves are in."""
    rounds: int = 3
    """Parts of the items; each is scored both ways, and gives one ratio."""
    shape: str = "gpt2"
    """Model shape by name, with random weights."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = OUT
    """Result file."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"there is no shape {self.shape}; the shapes are {', '.join(SHAPES)}")
        if not 1 <= self.rounds <= self.items:
            raise ValueError(
                f"rounds={self.rounds} must be 1 to items={self.items}; every round needs items"
            )


def one_at_a_time(subject: Subject, items: Sequence[Item], dtype: torch.dtype) -> np.ndarray:
    """Nats of every ending, by a forward pass of four padded rows an item. Shape (items, 4)."""
    device, encode = subject.ranks.device, subject.tokenizer.encode
    found = []
    for item in items:
        context = encode(item.context)
        endings = [encode(" " + text) for text in item.endings]
        longest = max(map(len, endings))
        ids = torch.zeros(len(endings), len(context) + longest, dtype=torch.long)
        scored = torch.zeros_like(ids)
        for row, ending in enumerate(endings):
            length = len(context) + len(ending)
            ids[row, :length] = torch.tensor(context + ending)
            scored[row, len(context) : length] = 1
        ids, scored = ids.to(device), scored.to(device)
        with autocast(dtype, device):
            logits = subject.model.live_logits(subject.model.hidden(ids))[:, :-1]
        targets = ids[:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        found.append((losses.view_as(targets) * scored[:, 1:]).sum(1).cpu().numpy())
    return np.array(found)


def timed(device: torch.device, work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds that `work` takes, and what it gives."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, found


def measure(subject: Subject, items: Sequence[Item], rounds: int) -> dict[str, list[float]]:
    """Seconds of both ways by round, and the largest difference of their losses.

    The order changes from round to round, so that a slow moment hits neither way more.
    """
    dtype = choose_dtype("auto", subject.ranks.device)
    ways = {
        "trees": lambda part: score_items(subject, part, EvalOptions()).sums,
        "one_item": lambda part: one_at_a_time(subject, part, dtype),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways} | {"largest_difference": []}
    with evaluating(subject.model):
        for way in ways.values():
            way(items[:4])  # the first pass allocates
        for number in range(rounds):
            part = items[number::rounds]
            sums = {}
            for name in list(ways)[:: 1 if number % 2 else -1]:
                took, sums[name] = timed(subject.ranks.device, lambda w=name, p=part: ways[w](p))
                seconds[name].append(took)
            gap = np.abs(sums["trees"] - sums["one_item"]).max()
            seconds["largest_difference"].append(float(gap))
    return seconds


def report_of(arguments: Arguments, device: torch.device, seconds: dict) -> dict:
    """What the result file holds."""
    ratios = [b / a for a, b in zip(seconds["trees"], seconds["one_item"], strict=True)]
    count = arguments.items / arguments.rounds
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "shape": arguments.shape,
        "items": arguments.items,
        "seconds": seconds,
        "items_per_second": {
            name: count / statistics.median(seconds[name]) for name in ("trees", "one_item")
        },
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
    }


def table_of(report: dict) -> str:
    """The result as Markdown."""
    speed = report["items_per_second"]
    names = {"one_item": "one item (four rows) at a time", "trees": "`eval/`: trees in batches"}
    lines = ["| way | items/s (median) | against one item |", "|---|---|---|"]
    for name, text in names.items():
        ratio = report["median_ratio"] if name == "trees" else 1.0
        lines.append(f"| {text} | {speed[name]:.2f} | {ratio:.2f} times |")
    spread = f"{min(report['ratios']):.2f} to {max(report['ratios']):.2f}"
    gap = max(report["seconds"]["largest_difference"])
    lines.append(f"\nRatios by round: {spread}; losses differ by at most {gap:.2g} nats.")
    return "\n".join(lines)


def main() -> None:
    """Build a model, time both ways, report."""
    quiet_other_ranks()
    with user_errors():
        arguments = tyro.cli(Arguments, description=__doc__)
        ranks = start(arguments.device)
        everything = items_from_file(arguments.hellaswag_file)
        if arguments.items > len(everything):
            raise ValueError(
                f"items={arguments.items} is more than the {len(everything)} in "
                f"{arguments.hellaswag_file}; give --items {len(everything)} or fewer"
            )
        places = np.linspace(0, len(everything) - 1, arguments.items).astype(int)
        model = GPT(SHAPES[arguments.shape])
        model.initialise(1)
        subject = Subject(model.to(ranks.device), gpt2_tokenizer(), ranks)
        found = measure(subject, [everything[i] for i in places], arguments.rounds)
        report = report_of(arguments, ranks.device, found)
        log.info("%s", table_of(report))
        write_json(arguments.out, report)


if __name__ == "__main__":
    main()
