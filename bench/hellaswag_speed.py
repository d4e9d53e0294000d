"""Speed of scoring HellaSwag, compared with other implementations on the same items.

    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 120
    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 10042 --lm-eval \\
        --checkpoint runs/gpt2/checkpoints/latest
    python bench/hellaswag_speed.py --hellaswag-file hellaswag_val.jsonl --items 10042 --alone

Completion style is compared with a substitute for build-nanogpt's `hellaswag.py`: one item at a
time, four rows padded to the longest, the logits of all positions. Harness style is compared with
the model class of lm-evaluation-harness on the exported model. All methods score the same items in
float32 and alternate in rounds. The result has the ratios of their times and the items that they
answer differently. All use the allocator settings of parallel/allocator.py.
Prints Markdown and writes one JSON file after every round. The same command continues an
interrupted call, whose finished rounds are in OUT.rounds.npz.
"""

import logging
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.hellaswag_agreement import accuracies, agreement, scores_of
from bench.hellaswag_methods import (
    COMPLETION,
    HARNESS,
    harness_model,
    item_by_item_method,
    our_methods,
)
from bench.hellaswag_rounds import Rounds, Timed
from bench.provenance import RESULTS, device_name, provenance
from data_prep.tokenizer import gpt2_tokenizer
from eval.scoring.multiple_choice import Item
from eval.subject import Subject, load_subject
from eval.tasks.hellaswag import both_items
from eval.tasks.items import rows_of_file
from model.gpt import GPT
from model.shapes import SHAPES
from parallel.ranks import Ranks, silence_other_ranks, start, user_errors
from storage.atomic import write_json
from storage.script_options import parse_options

_OUT = RESULTS / "hellaswag_speed.json"
_PACKAGES = ("torch", "numpy", "lm_eval", "transformers")
# Keys of the report that must be the same to continue; `command` has the items and the rounds.
_SAME = ("command", "commit", "hardware", "versions", "device", "threads", "model", "lm_eval_batch")

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Time several methods of scoring HellaSwag."""

    hellaswag_file: Path
    """Items as .jsonl, .jsonl.xz or .jsonl.gz."""
    items: int = 120
    """Number of items, taken from the file at even distances."""
    rounds: int = 3
    """Number of parts of the items. Every method scores each part, which gives one ratio."""
    checkpoint: Path | None = None
    """Checkpoint folder; default: random weights of --shape."""
    shape: str = "gpt2"
    """Model shape by name, with random weights."""
    alone: bool = False
    """Only the project's own scoring, without the substitute for build-nanogpt."""
    lm_eval: bool = False
    """Also the model class of lm-evaluation-harness, which needs `.[lm-eval]`."""
    lm_eval_batch: int = 8
    """Rows in one forward pass of lm-evaluation-harness."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = _OUT
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
    """Time and accuracies of each method; for those of others also the comparison with ours.

    `items` are those of the finished rounds.
    """
    encode = subject.tokenizer.encode
    scores = {r.method.name: scores_of(items[r.method.style], r.nats, encode) for r in runs}
    seconds = {r.method.name: r.seconds for r in runs}
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        method, own = run.method, items[run.method.style]
        total = float(run.seconds.sum())
        found[method.name] = {
            "style": method.style,
            "items": len(own),
            "seconds": total,
            "cpu_seconds": float(run.cpu_seconds.sum()),
            "seconds_by_round": run.seconds.tolist(),
            "items_per_second": len(own) / total,
            **accuracies(own, scores[method.name]),
        }
        if method.against:
            ratios = (run.seconds / seconds[method.against]).tolist()
            found[method.name] |= {
                "against": method.against,
                "ratios": ratios,
                "median_ratio": statistics.median(ratios),
                "agreement": agreement(scores[method.against], scores[method.name]),
            }
    return found


def _table_of(methods: dict[str, dict[str, Any]]) -> str:
    """The result as Markdown."""
    texts = {
        "one_item": "completion: one item (four rows) at a time",
        "trees": "completion: `eval/`, shared contexts in batches",
        "lm_eval": "harness: lm-evaluation-harness",
        "trees_harness": "harness: `eval/`, shared contexts in batches",
    }
    lines = [
        "| method | seconds | items/s | its time / ours | acc | acc_norm |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    notes = []
    for name, method in methods.items():
        ratio = f"{method['median_ratio']:.2f}" if "median_ratio" in method else ""
        lines.append(
            f"| {texts[name]} | {method['seconds']:.1f} | {method['items_per_second']:.2f} "
            f"| {ratio} | {method['acc']:.4f} | {method['acc_norm']:.4f} |"
        )
        if ratio:
            notes.append(f"{name}: {_note(method)}")
    return "\n".join([*lines, "", *notes])


def _note(method: dict[str, Any]) -> str:
    found = method["agreement"]
    differing = (
        f"{tag} {len(found[tag]['other_choices'])} ({len(found[tag]['float_ties'])} float ties)"
        for tag in ("acc", "acc_norm")
    )
    return (
        f"ratios of the rounds {min(method['ratios']):.2f} to {max(method['ratios']):.2f}; losses "
        f"differ by at most {found['largest_difference']:.2g} nats; items with another choice: "
        f"{', '.join(differing)}"
    )


def _subject_of(arguments: Arguments, ranks: Ranks) -> Subject:
    """The model of the checkpoint, or a new one with random weights."""
    if arguments.checkpoint is not None:
        return load_subject(arguments.checkpoint, ranks)
    model = GPT(SHAPES[arguments.shape])
    model.initialise(1)
    return Subject(model.to(ranks.device), gpt2_tokenizer(), ranks)


def _model_name(arguments: Arguments) -> str:
    """The name of the scored model, without the path to the run."""
    found = arguments.checkpoint
    if found is None:
        return f"{arguments.shape}, random weights"
    return "/".join(found.resolve().parts[-3:])


def _items_of(arguments: Arguments) -> dict[str, list[Item]]:
    """The items in both styles. Raises: ValueError if the file has too few."""
    pairs = [both_items(where, row) for where, row in rows_of_file(arguments.hellaswag_file)]
    if arguments.items > len(pairs):
        raise ValueError(
            f"items={arguments.items} is more than the {len(pairs)} in "
            f"{arguments.hellaswag_file}; give --items {len(pairs)} or fewer"
        )
    indices = np.linspace(0, len(pairs) - 1, arguments.items).astype(int)
    return {
        COMPLETION: [pairs[i][0] for i in indices],
        HARNESS: [pairs[i][1] for i in indices],
    }


def main() -> None:
    """Build a model, time all methods, report."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start(arguments.device)
        report: dict[str, Any] = provenance(_PACKAGES)
        items, subject = _items_of(arguments), _subject_of(arguments, ranks)
        report |= {
            "device": device_name(ranks.device),
            "threads": torch.get_num_threads(),
            "model": _model_name(arguments),
            "lm_eval_batch": arguments.lm_eval_batch if arguments.lm_eval else None,
        }
        methods = our_methods(subject)
        if not arguments.alone:
            methods.append(item_by_item_method(subject))
        with ExitStack() as stack:
            if arguments.lm_eval:
                harness = harness_model(subject, arguments.checkpoint, arguments.lm_eval_batch)
                methods.append(stack.enter_context(harness))
            settings = {key: report[key] for key in _SAME}
            rounds = Rounds(arguments.out.with_suffix(".rounds.npz"), settings, arguments.rounds)
            rounds.load(methods, arguments.items)
            for done in rounds.measure(subject, items):
                indices = rounds.finished_items(arguments.items)
                finished = {style: [own[i] for i in indices] for style, own in items.items()}
                report |= {"rounds": arguments.rounds, "rounds_done": done}
                report["ways"] = results_of(subject, rounds.finished(), finished)
                write_json(arguments.out, report)
        log.info("%s", _table_of(report["ways"]))


if __name__ == "__main__":
    main()
