"""Is this evaluation right? OpenAI's GPT-2 124M must get the HellaSwag scores that are published.

    python eval/calibrate.py
    python eval/calibrate.py --model models/gpt2-from-the-hub --hellaswag-file hellaswag_val.jsonl

The weights come from the Hugging Face Hub or a folder in its format, the items from the Hub or a
file. Prints a table with a verdict a number. Exit code: 0 if all four agree, 1 if one does not, 2
if nothing could be compared: no weights, no items, another model, or not the 10,042 items as
published. Two cores without a GPU take over an hour.
"""

import logging
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from eval.result import TaskResult
from eval.scoring.multiple_choice import Item
from eval.subject import EvalOptions, Subject, load_subject
from eval.tasks.hellaswag import (
    COMPLETION,
    HARNESS,
    HELLASWAG,
    MARKS,
    UNMARKED,
    VALIDATION_SHA256,
    hellaswag,
)
from eval.tasks.items import read_items
from model.config import GPTConfig
from model.hf_format.convert import import_model
from model.precision import Precision, choose_dtype
from parallel.collectives import broadcast_object, raise_on_all_ranks
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from storage.atomic import write_json
from storage.digest import file_sha256

ITEMS = 10_042
LABELS = [2515, 2485, 2584, 2458]  # how often each ending of the published split is the right one
MARKED = 6_799  # items from wikiHow, every one with its marks
AGREES, MISSED, INCOMPARABLE = 0, 1, 2

# Items right. Four published digits of 10,042 items are a count: 0.2955 is 2967 and nothing else.
# Sources: https://github.com/karpathy/build-nanogpt/blob/master/hellaswag.py (0.2859 and 0.2955 by
# its own loop, 0.2892 and 0.3114 by lm-evaluation-harness)
PUBLISHED = {
    f"{COMPLETION}/acc": 2871,
    f"{COMPLETION}/acc_norm": 2967,
    f"{HARNESS}/acc": 2904,
    f"{HARNESS}/acc_norm": 3127,
}
# Rounding decides only where two endings are almost alike. Two figures of one method are published,
# 0.2955 and 0.294463 (build-nanogpt's play.ipynb), 10 items apart: that much is float32 or TF32.
# bfloat16 keeps 8 bits where TF32 keeps 11, so more ties fall, to either side: three times as many.
# A wrong text or norm costs more: the two styles lie 33 (acc) and 160 items (acc_norm) apart.
TOLERANCE = {torch.float32: 10, torch.bfloat16: 30}

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Compare GPT-2 124M's HellaSwag scores with the published ones."""

    model: str = "openai-community/gpt2"
    """Id on the Hugging Face Hub, or a folder with config.json and model.safetensors."""
    hellaswag_file: Path | None = None
    """The 10,042 items as .jsonl, .jsonl.xz, .jsonl.gz or .parquet; default: the Hub's."""
    items: int | None = None
    """Only the first so many items: to see that it runs, for no verdict; default: all."""
    device: str = "auto"
    """auto, cpu or cuda; auto takes CUDA where there is one."""
    dtype: Precision = "float32"
    """Arithmetic of matrix products: float32 (TF32 on CUDA), as published, bfloat16 or auto."""
    json: Path | None = None
    """File to write the table to."""


@dataclass(frozen=True)
class Verdict:
    """One number beside the published one."""

    tag: str
    right: int
    """Items that were right."""
    items: int
    published: int
    """Items of 10,042 that were right."""
    allowed: int
    """Items that the two may differ by."""
    verdict: Literal["agrees", "MISSED", "not comparable"]


def make_verdicts(result: TaskResult, allowed: int, reasons: list[str]) -> list[Verdict]:
    """A verdict for each published number; none is given where there are reasons against it."""
    found = []
    for tag, published in PUBLISHED.items():
        task, _, name = tag.partition("/")
        if task not in result.items:
            task, tag = UNMARKED, f"{UNMARKED}/{name}"
        table = result.items[task]
        right = int((table.predictions[name] == table.labels).sum())
        agrees = abs(right - published) <= allowed
        verdict = "not comparable" if reasons else "agrees" if agrees else "MISSED"
        found.append(Verdict(tag, right, len(table.labels), published, allowed, verdict))
    return found


def reasons_not_comparable(
    config: GPTConfig, items: tuple[tuple[Item, Item], ...], file: Path | None
) -> list[str]:
    """Why the published numbers are not this evaluation's to reach; empty if they are.

    The Hub's file is known by its digest; any other by what the published split is known to hold.
    """
    reasons = []
    if config != GPTConfig():
        reasons.append(f"the model has another shape than GPT-2 124M: {config}")
    if len(items) != ITEMS:
        reasons.append(f"{len(items)} items are not the {ITEMS:,} of the validation split")
    elif file is not None and file_sha256(file) != VALIDATION_SHA256:
        labels = np.bincount([plain.label for plain, _ in items], minlength=4).tolist()
        if labels != LABELS:
            reasons.append(f"its right endings are {labels}, in the published split {LABELS}")
        texts = ((plain.context, *plain.endings) for plain, _ in items)
        marked = sum(any(map(MARKS.search, text)) for text in texts)
        if marked != MARKED or not all(plain.original for plain, _ in items):
            reasons.append(
                f"{marked:,} items of {file} have wikiHow's marks such as [header], in the "
                f"published split {MARKED:,}: its text was changed"
            )
    return reasons


def import_subject(model: str, ranks: Ranks) -> Subject:
    """The published model as ours, by way of a folder that is gone again when this returns.

    Raises: ValueError on every rank if it cannot be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        error = None
        if ranks.is_main:
            try:
                import_model(model, Path(folder) / "model")
            except (ValueError, OSError) as found:
                error = ValueError(f"nothing was calibrated, for want of the weights: {found}")
        raise_on_all_ranks(error)
        return load_subject(Path(broadcast_object(folder)) / "model", ranks)


def table_of(verdicts: list[Verdict]) -> str:
    """The verdicts in columns."""
    head = f"{'':28}{'published':>16}{'here':>16}{'off by':>8}{'allowed':>9}  verdict"
    lines = [head]
    for one in verdicts:
        published = f"{one.published / ITEMS:.4f} ({one.published})"
        here = f"{one.right / one.items:.4f} ({one.right})"
        off = f"{one.right - one.published:+d}" if one.verdict != "not comparable" else "-"
        lines.append(
            f"{one.tag:28}{published:>16}{here:>16}{off:>8}{one.allowed:>9}  {one.verdict}"
        )
    return "\n".join(lines)


def calibrate(arguments: Arguments, ranks: Ranks) -> int:
    """Evaluate and compare; the exit code. Raises: ValueError if there is nothing to evaluate."""
    options = EvalOptions(
        hellaswag_file=arguments.hellaswag_file, items=arguments.items, dtype=arguments.dtype
    )
    subject = import_subject(arguments.model, ranks)
    try:
        items = read_items(HELLASWAG, subject, options)
    except ValueError as error:
        raise ValueError(f"nothing was calibrated, for want of the items: {error}") from error
    reasons = reasons_not_comparable(subject.model.config, items, options.hellaswag_file)
    for reason in reasons:
        log.warning("not comparable: %s", reason)
    dtype = choose_dtype(options.dtype, ranks.device)
    verdicts = make_verdicts(hellaswag(subject, options), TOLERANCE[dtype], reasons)
    log.info("%s", table_of(verdicts))
    if arguments.json is not None and ranks.is_main:
        rows = [asdict(verdict) for verdict in verdicts]
        write_json(arguments.json, {"reasons": reasons, "dtype": str(dtype), "verdicts": rows})
    if reasons:
        log.warning("nothing was calibrated: see above")
        return INCOMPARABLE
    missed = [one.tag for one in verdicts if one.verdict == "MISSED"]
    if missed:
        log.warning("this evaluation, or %s, is not right: see %s", arguments.model, missed)
        return MISSED
    log.info("calibrated: all four numbers are the published ones, within the tolerance")
    return AGREES


def main() -> None:
    """Read the options, compare, leave with the verdict."""
    silence_other_ranks()
    with user_errors():
        arguments = tyro.cli(Arguments)
        code = calibrate(arguments, start(arguments.device))
    stop()
    sys.exit(code)


if __name__ == "__main__":
    main()
