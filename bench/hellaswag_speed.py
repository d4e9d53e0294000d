"""HellaSwag in both styles: our trees in batches against the ways of others, on the same items.

    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 120
    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 10042 --lm-eval \\
        --checkpoint runs/gpt2/checkpoints/latest
    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 10042 --alone

Completion style against a stand-in that does what build-nanogpt's `hellaswag.py` is known to do:
four rows an item, padded to its longest, the logits of all positions. Harness style against the
model class of lm-evaluation-harness on the exported model. All score the same items by turns, in
float32; what counts is the ratio, and that the answers are the same. All have the allocator of
parallel/allocator.py. Prints Markdown, writes one JSON after every round; the same command goes on
after the last finished one, which OUT.rounds.npz holds.
"""

import logging
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from bench.hellaswag_agreement import accuracies, agreement, scores_of
from bench.hellaswag_rounds import Rounds, Timed
from bench.hellaswag_ways import COMPLETION, HARNESS, harness_model, one_item_way, our_ways
from bench.provenance import device_name, provenance
from data_prep.tokenizer import gpt2_tokenizer
from eval.scoring.multiple_choice import Item
from eval.subject import Subject, load_subject
from eval.tasks.hellaswag import both_items
from eval.tasks.items import rows_of_file
from model.gpt import GPT
from model.shapes import SHAPES
from parallel.ranks import Ranks, silence_other_ranks, start, user_errors
from storage.atomic import write_json
from storage.boolean_flags import with_flags

OUT = Path(__file__).parent / "results" / "hellaswag_speed.json"
PACKAGES = ("torch", "numpy", "lm_eval", "transformers")
# What the figures depend on, beside the ways; `command` has the items, the rounds and the file.
SAME = ("command", "commit", "hardware", "versions", "device", "threads", "model", "lm_eval_batch")

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


def results_of(
    subject: Subject, runs: Sequence[Timed], items: dict[str, list[Item]]
) -> dict[str, dict[str, Any]]:
    """By way: time, accuracies and, for somebody else's, ratios and how far it agrees with ours.

    `items` are those of the finished rounds.
    """
    encode = subject.tokenizer.encode
    scores = {r.way.name: scores_of(items[r.way.style], r.nats, encode) for r in runs}
    seconds = {r.way.name: r.seconds for r in runs}
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        way, own = run.way, items[run.way.style]
        total = float(run.seconds.sum())
        found[way.name] = {
            "style": way.style,
            "items": len(own),
            "seconds": total,
            "cpu_seconds": float(run.cpu_seconds.sum()),
            "seconds_by_round": run.seconds.tolist(),
            "items_per_second": len(own) / total,
            **accuracies(own, scores[way.name]),
        }
        if way.against:
            ratios = (run.seconds / seconds[way.against]).tolist()
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
    silence_other_ranks()
    with user_errors():
        words = with_flags(Arguments, sys.argv[1:])
        arguments = tyro.cli(Arguments, args=words, description=__doc__)
        ranks = start(arguments.device)
        report: dict[str, Any] = provenance(PACKAGES)
        items, subject = items_of(arguments), subject_of(arguments, ranks)
        report |= {
            "device": device_name(ranks.device),
            "threads": torch.get_num_threads(),
            "model": model_name(arguments),
            "lm_eval_batch": arguments.lm_eval_batch if arguments.lm_eval else None,
        }
        ways = our_ways(subject) + ([] if arguments.alone else [one_item_way(subject)])
        with ExitStack() as stack:
            if arguments.lm_eval:
                theirs = harness_model(subject, arguments.checkpoint, arguments.lm_eval_batch)
                ways.append(stack.enter_context(theirs))
            settings = {key: report[key] for key in SAME}
            kept = Rounds(arguments.out.with_suffix(".rounds.npz"), settings, arguments.rounds)
            kept.take_up(ways, arguments.items)
            for done in kept.measured(subject, items):
                places = kept.places(arguments.items)
                finished = {style: [own[i] for i in places] for style, own in items.items()}
                report |= {"rounds": arguments.rounds, "rounds_done": done}
                report["ways"] = results_of(subject, kept.finished(), finished)
                write_json(arguments.out, report)
        log.info("%s", table_of(report["ways"]))


if __name__ == "__main__":
    main()
