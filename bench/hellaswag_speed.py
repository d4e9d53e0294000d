"""HellaSwag in both styles: our trees in batches against the ways of others, on the same items.

    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 120
    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 10042 --lm-eval \\
        --checkpoint runs/gpt2/checkpoints/latest

Completion style against a stand-in that does what build-nanogpt's `hellaswag.py` is known to do:
four rows an item, padded to its longest, the logits of all positions. Harness style against the
model class of lm-evaluation-harness on the exported model. All score the same items by turns, in
float32; what counts is the ratio, and that the answers are the same. Prints Markdown, writes one
JSON.
"""

import logging
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import tyro

from bench.hellaswag_ways import COMPLETION, HARNESS, Way, harness_model, our_ways
from data_prep.tokenizer import gpt2_tokenizer
from eval.hellaswag import both_items
from eval.multiple_choice import Item
from eval.sources import rows_of_file
from eval.subject import Subject, evaluating, load_subject
from model.gpt import GPT
from model.presets import SHAPES
from parallel.ranks import Ranks, quiet_other_ranks, start, user_errors
from storage.atomic import write_json

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "results" / "hellaswag_speed.json"

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Time several ways of scoring HellaSwag."""

    hellaswag_file: Path
    """Items as .jsonl, .jsonl.xz or .jsonl.gz."""
    items: int = 120
    """Taken from the file at even distances, so that both of its halves are in."""
    rounds: int = 3
    """Parts of the items; each is scored every way, and gives one ratio."""
    checkpoint: Path | None = None
    """Checkpoint folder; default: random weights of --shape."""
    shape: str = "gpt2"
    """Model shape by name, with random weights."""
    lm_eval: bool = False
    """Also lm-evaluation-harness's own model class, which needs `.[lm-eval]`."""
    lm_eval_batch: int = 8
    """Its rows in one forward pass."""
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


def timed(device: torch.device, work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds that `work` takes, and what it gives."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, found


def measure(
    subject: Subject, ways: Sequence[Way], items: dict[str, list[Item]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Seconds of each way by round, and its nats of every ending.

    The order changes from round to round, so that a slow moment hits no way more.
    """
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    shape = len(items[COMPLETION]), len(items[COMPLETION][0].endings)
    nats = {way.name: np.zeros(shape) for way in ways}
    with evaluating(subject.model):
        for way in ways:
            way.score(items[way.style][:4])  # the first pass allocates
        for number in range(rounds):
            for way in ways[:: 1 if number % 2 else -1]:
                part = items[way.style][number::rounds]
                took, found = timed(subject.ranks.device, lambda w=way, p=part: w.score(p))
                seconds[way.name].append(took)
                nats[way.name][number::rounds] = found
            log.info("round %d of %d is done", number + 1, rounds)
    return seconds, nats


def choices_of(subject: Subject, items: Sequence[Item], nats: np.ndarray) -> dict[str, np.ndarray]:
    """The chosen ending of each item by sum, and by mean in the style of the items."""
    encode = subject.tokenizer.encode
    lengths = [[len(e) if i.harness else len(encode(" " + e)) for e in i.endings] for i in items]
    return {"acc": nats.argmin(1), "acc_norm": (nats / np.maximum(lengths, 1)).argmin(1)}


def comparisons(
    subject: Subject, ways: Sequence[Way], items: dict[str, list[Item]], nats: dict
) -> dict[str, dict]:
    """For each way its scores; for somebody else's also how ours differs, item by item."""
    chosen = {w.name: choices_of(subject, items[w.style], nats[w.name]) for w in ways}
    found: dict[str, dict] = {}
    for way in ways:
        labels = [item.label for item in items[way.style]]
        found[way.name] = {k: float((c == labels).mean()) for k, c in chosen[way.name].items()}
        if way.against:
            gaps = np.abs(nats[way.name] - nats[way.against])
            found[way.name] |= {
                "largest_difference": float(gaps.max()),
                "other_choices": {
                    key: np.flatnonzero(c != chosen[way.against][key]).tolist()
                    for key, c in chosen[way.name].items()
                },
            }
    return found


def report_of(
    arguments: Arguments, device: torch.device, ways: Sequence[Way], seconds: dict
) -> dict:
    """What the result file holds, but for the scores."""
    ratios = {
        way.name: [b / a for a, b in zip(seconds[way.against], seconds[way.name], strict=True)]
        for way in ways
        if way.against
    }
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "model": str(arguments.checkpoint or f"{arguments.shape}, random weights"),
        "lm_eval_batch": arguments.lm_eval_batch if arguments.lm_eval else None,
        "items": arguments.items,
        "seconds": seconds,
        "total_seconds": {name: sum(parts) for name, parts in seconds.items()},
        "ratios": ratios,
        "median_ratios": {name: statistics.median(parts) for name, parts in ratios.items()},
    }


def table_of(report: dict) -> str:
    """The result as Markdown."""
    texts = {
        "one_item": "completion: one item (four rows) at a time",
        "trees": "completion: `eval/`, trees in batches",
        "lm_eval": "harness: lm-evaluation-harness",
        "trees_harness": "harness: `eval/`, trees in batches",
    }
    lines = [
        "| way | seconds | items/s | ours is so many times as fast | acc | acc_norm |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    notes = []
    for name, total in report["total_seconds"].items():
        scores, speed = report["scores"][name], report["items"] / total
        ratio = report["median_ratios"].get(name)
        shown = f"{ratio:.2f}" if ratio else ""
        lines.append(
            f"| {texts[name]} | {total:.1f} | {speed:.2f} | {shown} "
            f"| {scores['acc']:.4f} | {scores['acc_norm']:.4f} |"
        )
        if ratio:
            spread = f"{min(report['ratios'][name]):.2f} to {max(report['ratios'][name]):.2f}"
            notes.append(
                f"{name}: ratios by round {spread}; losses differ by at most "
                f"{scores['largest_difference']:.2g} nats; other choices: {scores['other_choices']}"
            )
    return "\n".join([*lines, "", *notes])


def subject_of(arguments: Arguments, ranks: Ranks) -> Subject:
    """The checkpoint, or random weights."""
    if arguments.checkpoint is not None:
        return load_subject(arguments.checkpoint, ranks)
    model = GPT(SHAPES[arguments.shape])
    model.initialise(1)
    return Subject(model.to(ranks.device), gpt2_tokenizer(), ranks)


def items_of(arguments: Arguments) -> dict[str, list[Item]]:
    """The items by style. Raises: ValueError if the file holds too few."""
    pairs = [both_items(where, row) for where, row in rows_of_file(arguments.hellaswag_file)]
    if arguments.items > len(pairs):
        raise ValueError(
            f"items={arguments.items} is more than the {len(pairs)} in "
            f"{arguments.hellaswag_file}; give --items {len(pairs)} or fewer"
        )
    places = np.linspace(0, len(pairs) - 1, arguments.items).astype(int)
    return {
        COMPLETION: [pairs[i][0] for i in places],
        HARNESS: [pairs[i][1] for i in places],
    }


def main() -> None:
    """Build a model, time all ways, report."""
    quiet_other_ranks()
    with user_errors():
        arguments = tyro.cli(Arguments, description=__doc__)
        ranks = start(arguments.device)
        items, subject = items_of(arguments), subject_of(arguments, ranks)
        ways = our_ways(subject)
        with ExitStack() as stack:
            if arguments.lm_eval:
                theirs = harness_model(subject, arguments.checkpoint, arguments.lm_eval_batch)
                ways.append(stack.enter_context(theirs))
            seconds, nats = measure(subject, ways, items, arguments.rounds)
        report = report_of(arguments, ranks.device, ways, seconds)
        report["scores"] = comparisons(subject, ways, items, nats)
        log.info("%s", table_of(report))
        write_json(arguments.out, report)


if __name__ == "__main__":
    main()
