"""HellaSwag, both ways at once; tags say which. Source: https://arxiv.org/abs/1905.07830

`hellaswag/`: completion style, the raw `ctx`, a space and the ending, `acc_norm` per token, as
build-nanogpt scores it. `hellaswag_harness/`: lm-evaluation-harness's text, with the activity in
front and wikiHow's marks taken out, and `acc_norm` per character of the ending.
"""

import re
from pathlib import Path
from typing import Any

from eval.multiple_choice import Item, item_of, score_items
from eval.result import TaskResult
from eval.sources import HubFile, Source, read_items, rows_of_file, rows_of_hub
from eval.subject import EvalOptions, Subject

REPOSITORY = "Rowan/hellaswag"
REVISION = "218ec52e09a7e7462a5400043bb9a69a41d06b76"
VALIDATION_FILE = "data/validation-00000-of-00001.parquet"
VALIDATION_SHA256 = "899813071e1e95efafec90f856e1987d2150fa4d020fc005df6962c259f660cd"

BRACKETS = re.compile(r"\[.*?\]")


def hellaswag(subject: Subject, options: EvalOptions) -> TaskResult:
    """The task: `acc` by summed loss and `acc_norm` by mean, in both styles."""
    pairs = read_items(HELLASWAG, subject, options)
    tags, items = {}, {}
    for name, style in zip(
        ("hellaswag", "hellaswag_harness"), zip(*pairs, strict=True), strict=True
    ):
        found = score_items(subject, style, options).result(name)
        tags |= found.tags
        items |= found.items
    return TaskResult(tags, items)


def completion_item(where: str, row: Any) -> Item:
    """An item in completion style. Raises: ValueError for a row in another schema."""
    _check_schema(where, row, {"ctx", "endings", "label"})
    return item_of(where, row["ctx"], row["endings"], row["label"], text="ctx")


def both_items(where: str, row: Any) -> tuple[Item, Item]:
    """An item in completion style and in harness style."""
    plain = completion_item(where, row)
    _check_schema(where, row, {"activity_label", "ctx_a", "ctx_b"})
    if not all(isinstance(row[key], str) for key in ("activity_label", "ctx_a", "ctx_b")):
        raise ValueError(
            f"{where} must have texts as activity_label, ctx_a and ctx_b; give the validation "
            "split as published"
        )
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    endings = tuple(cleaned(text) for text in plain.endings)
    return plain, Item(cleaned(context), endings, plain.label, harness=True)


def cleaned(text: str) -> str:
    """Text without wikiHow's marks. Source: lm_eval/tasks/hellaswag/utils.py, version 1.0."""
    marked = text.strip().replace(" [title]", ". ")
    return BRACKETS.sub("", marked).replace("  ", " ")


def _check_schema(where: str, row: Any, keys: set[str]) -> None:
    if not isinstance(row, dict) or not keys <= row.keys():
        raise ValueError(
            f"{where} is not in HellaSwag's schema, which has {', '.join(sorted(keys))}; give the "
            "validation split as published"
        )


HELLASWAG = Source(
    "hellaswag",
    HubFile(REPOSITORY, VALIDATION_FILE, REVISION, VALIDATION_SHA256),
    both_items,
)


def items_from_file(path: Path) -> tuple[Item, ...]:
    """A local file's items in completion style. Raises: ValueError naming a line that is none."""
    return tuple(completion_item(where, row) for where, row in rows_of_file(path))


def items_from_hub(
    revision: str = REVISION, sha256: str | None = VALIDATION_SHA256
) -> tuple[Item, ...]:
    """The validation split in completion style, from the Hub or its cache on this machine.

    Raises: DataUnavailable, within seconds, if neither has it.
    """
    hub = HubFile(REPOSITORY, VALIDATION_FILE, revision, sha256)
    return tuple(completion_item(w, row) for w, row in rows_of_hub(hub, HELLASWAG.option))
