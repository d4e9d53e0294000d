"""HellaSwag in both styles: our trees in batches against the ways of others, on the same items.

    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 120
    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 10042 --lm-eval \\
        --checkpoint runs/gpt2/checkpoints/latest
    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 10042 --alone

Completion style against a stand-in that does what build-nanogpt's `hellaswag.py` is known to do:
four rows an item, padded to its longest, the logits of all positions. Harness style against the
model class of lm-evaluation-harness on the exported model. All score the same items by turns, in
float32; what counts is the ratio, and that the answers are the same. All have the allocator of
parallel/allocator.py. Prints Markdown, writes one JSON.
"""

import logging
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from bench.hellaswag_agreement import accuracies, agreement, scores_of
from bench.hellaswag_ways import (
    COMPLETION,
    HARNESS,
    Way,
    harness_model,
    one_item_way,
    our_ways,
)
from bench.provenance import provenance
from data_prep.tokenizer import gpt2_tokenizer
from eval.hellaswag import both_items
from eval.multiple_choice import Item
from eval.sources import rows_of_file
from eval.subject import Subject, evaluating, load_subject
from model.gpt import GPT
from model.presets import SHAPES
from parallel.ranks import Ranks, quiet_other_ranks, start, user_errors
from storage.atomic import write_json

OUT = Path(__file__).parent / "results" / "hellaswag_speed.json"
PACKAGES = ("torch", "numpy", "lm_eval", "transformers")

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
    alone: bool = False
    """Only our own ways, without the stand-in."""
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


@dataclass(frozen=True)
class Timed:
    """What one way took, by round, and what it found."""

    way: Way
    seconds: list[float]
    cpu_seconds: list[float]
    """User and system time of all threads."""
    nats: np.ndarray
    """Of every ending. Shape (items, 4)."""


def timed(device: torch.device, work: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Seconds and CPU seconds that `work` takes, and what it gives."""

    def now() -> np.ndarray:
        if device.type == "cuda":
            torch.cuda.synchronize()
        used = resource.getrusage(resource.RUSAGE_SELF)
        return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])

    begin = now()
    found = work()
    seconds, cpu_seconds = (now() - begin).tolist()
    return seconds, cpu_seconds, found


def measure(
    subject: Subject, ways: Sequence[Way], items: dict[str, list[Item]], rounds: int
) -> list[Timed]:
    """What each way took and found.

    The order changes from round to round, so that a slow moment hits no way more.
    """
    shape = len(items[COMPLETION]), len(items[COMPLETION][0].endings)
    runs = [Timed(way, [], [], np.zeros(shape)) for way in ways]
    with evaluating(subject.model):
        for way in ways:
            way.score(items[way.style][:4])  # the first pass allocates
        for number in range(rounds):
            for run in runs[:: 1 if number % 2 else -1]:
                part = items[run.way.style][number::rounds]
                took, cpu, found = timed(subject.ranks.device, lambda r=run, p=part: r.way.score(p))
                run.seconds.append(took)
                run.cpu_seconds.append(cpu)
                run.nats[number::rounds] = found
                log.info("round %d of %d: %s %.1f s", number + 1, rounds, run.way.name, took)
    return runs


def results_of(
    subject: Subject, runs: Sequence[Timed], items: dict[str, list[Item]]
) -> dict[str, dict[str, Any]]:
    """By way: time, accuracies and, for somebody else's, ratios and how far it agrees with ours."""
    encode = subject.tokenizer.encode
    scores = {r.way.name: scores_of(items[r.way.style], r.nats, encode) for r in runs}
    seconds = {r.way.name: r.seconds for r in runs}
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        way, own = run.way, items[run.way.style]
        total = sum(run.seconds)
        found[way.name] = {
            "style": way.style,
            "items": len(own),
            "seconds": total,
            "cpu_seconds": sum(run.cpu_seconds),
            "seconds_by_round": run.seconds,
            "items_per_second": len(own) / total,
            **accuracies(own, scores[way.name]),
        }
        if way.against:
            pairs = zip(seconds[way.against], run.seconds, strict=True)
            ratios = [theirs / ours for ours, theirs in pairs]
            found[way.name] |= {
                "against": way.against,
                "ratios": ratios,
                "median_ratio": statistics.median(ratios),
                "agreement": agreement(scores[way.against], scores[way.name]),
            }
    return found


def table_of(ways: dict[str, dict[str, Any]]) -> str:
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
    for name, way in ways.items():
        ratio = f"{way['median_ratio']:.2f}" if "median_ratio" in way else ""
        lines.append(
            f"| {texts[name]} | {way['seconds']:.1f} | {way['items_per_second']:.2f} | {ratio} "
            f"| {way['acc']:.4f} | {way['acc_norm']:.4f} |"
        )
        if ratio:
            notes.append(f"{name}: {_note(way)}")
    return "\n".join([*lines, "", *notes])


def _note(way: dict[str, Any]) -> str:
    found = way["agreement"]
    differing = (
        f"{tag} {len(found[tag]['other_choices'])} ({len(found[tag]['float_ties'])} float ties)"
        for tag in ("acc", "acc_norm")
    )
    return (
        f"ratios by round {min(way['ratios']):.2f} to {max(way['ratios']):.2f}; losses differ by "
        f"at most {found['largest_difference']:.2g} nats; items chosen otherwise: "
        f"{', '.join(differing)}"
    )


def subject_of(arguments: Arguments, ranks: Ranks) -> Subject:
    """The checkpoint, or random weights."""
    if arguments.checkpoint is not None:
        return load_subject(arguments.checkpoint, ranks)
    model = GPT(SHAPES[arguments.shape])
    model.initialise(1)
    return Subject(model.to(ranks.device), gpt2_tokenizer(), ranks)


def model_name(arguments: Arguments) -> str:
    """What was scored, without the place where it lies."""
    found = arguments.checkpoint
    if found is None:
        return f"{arguments.shape}, random weights"
    return "/".join(found.resolve().parts[-3:])


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
        report: dict[str, Any] = provenance(PACKAGES)
        items, subject = items_of(arguments), subject_of(arguments, ranks)
        ways = our_ways(subject) + ([] if arguments.alone else [one_item_way(subject)])
        with ExitStack() as stack:
            if arguments.lm_eval:
                theirs = harness_model(subject, arguments.checkpoint, arguments.lm_eval_batch)
                ways.append(stack.enter_context(theirs))
            runs = measure(subject, ways, items, arguments.rounds)
        report |= {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "model": model_name(arguments),
            "lm_eval_batch": arguments.lm_eval_batch if arguments.lm_eval else None,
            "ways": results_of(subject, runs, items),
        }
        log.info("%s", table_of(report["ways"]))
        write_json(arguments.out, report)


if __name__ == "__main__":
    main()
