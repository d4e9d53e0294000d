"""HellaSwag, scored in two styles at once. Source: https://arxiv.org/abs/1905.07830

`hellaswag/`: completion style, as build-nanogpt scores it. The text is the raw `ctx`, a space and
the ending; `acc_norm` is per token. `hellaswag_harness/`: as lm-evaluation-harness scores it. The
activity comes first, wikiHow's marks are removed, `acc_norm` is per character of the ending.
Completion style needs the original text. If a file's marks were removed, its scores are called
`hellaswag_unmarked/`; do not compare them with published ones.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.result import TaskResult
from eval.scoring.multiple_choice import Item, item_from_row, score_items
from eval.subject import EvalOptions, Subject
from eval.tasks.few_shot import few_shot_name, with_examples
from eval.tasks.items import (
    HubFile,
    ItemSource,
    read_examples,
    read_items,
    rows_of_file,
    rows_of_hub,
)

# The copy on the Hub, because the original files on GitHub have been blocked since September 2026
# (https://github.com/sgl-project/sglang/pull/39481).
_REPOSITORY = "Rowan/hellaswag"
REVISION = "218ec52e09a7e7462a5400043bb9a69a41d06b76"
VALIDATION_FILE = "data/validation-00000-of-00001.parquet"
VALIDATION_SHA256 = "899813071e1e95efafec90f856e1987d2150fa4d020fc005df6962c259f660cd"

_TRAINING_FILE = "data/train-00000-of-00001.parquet"

COMPLETION, UNMARKED, HARNESS = "hellaswag", "hellaswag_unmarked", "hellaswag_harness"
MARKS = re.compile(r"\[(?:header|title|step|substeps)\]")  # in every item from wikiHow
_BRACKETS = re.compile(r"\[.*?\]")


def hellaswag(subject: Subject, options: EvalOptions) -> TaskResult:
    """The task: `acc` by summed loss and `acc_norm` by mean loss, in both styles.

    With few-shot examples only in harness style: there are no published scores for the other.
    """
    plain, harness = zip(*read_items(HELLASWAG, subject, options), strict=True)
    if options.few_shot:
        pool = [item for _, item in read_examples(HELLASWAG, subject, options)]
        harness = with_examples(HELLASWAG, harness, pool, options.few_shot)
        styles = {few_shot_name(HARNESS, options.few_shot): harness}
    else:
        original = all(item.original for item in plain)
        styles = {COMPLETION if original else UNMARKED: plain, HARNESS: harness}
    tags, items = {}, {}
    for name, style in styles.items():
        found = score_items(subject, style, options).result(name)
        tags |= found.tags
        items |= found.items
    return TaskResult(tags, items)


def completion_item(where: str, row: Any) -> Item:
    """An item in completion style. Raises: ValueError if the row has another schema."""
    _check_schema(where, row, {"ctx", "endings", "label"})
    item = item_from_row(where, row["ctx"], row["endings"], row["label"], text="ctx")
    return replace(item, original=_is_original(row, item))


def _is_original(row: dict[str, Any], item: Item) -> bool:
    """Whether the text is as published: it has wikiHow's marks, and the row does not deny it."""
    from_wikihow = str(row.get("source_id", "")).startswith("wikihow")
    marked = any(MARKS.search(text) for text in (item.context, *item.endings))
    return row.get("text_exact") is not False and (marked or not from_wikihow)


def both_items(where: str, row: Any) -> tuple[Item, Item]:
    """The same item in completion style and in harness style."""
    plain = completion_item(where, row)
    _check_schema(where, row, {"activity_label", "ctx_a", "ctx_b"})
    if not all(isinstance(row[key], str) for key in ("activity_label", "ctx_a", "ctx_b")):
        raise ValueError(
            f"{where} must have texts as activity_label, ctx_a and ctx_b; give the validation "
            "split as published"
        )
    # `capitalize` also makes the other letters lower-case. The harness does the same.
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    endings = tuple(without_marks(text) for text in plain.endings)
    return plain, Item(without_marks(context), endings, plain.label, harness=True)


def without_marks(text: str) -> str:
    """The text without wikiHow's marks. Source: lm_eval/tasks/hellaswag/utils.py, version 1.0."""
    marked = text.strip().replace(" [title]", ". ")
    return _BRACKETS.sub("", marked).replace("  ", " ")


def _check_schema(where: str, row: Any, keys: set[str]) -> None:
    if not isinstance(row, dict) or not keys <= row.keys():
        raise ValueError(
            f"{where} is not in HellaSwag's schema, which has {', '.join(sorted(keys))}; give the "
            "validation split as published"
        )


HELLASWAG = ItemSource(
    "hellaswag",
    HubFile(_REPOSITORY, VALIDATION_FILE, REVISION, VALIDATION_SHA256),
    both_items,
    HubFile(_REPOSITORY, _TRAINING_FILE, REVISION, None),
    spare_example=True,
    flag="hellaswag-file",
)


def items_from_file(path: Path) -> tuple[Item, ...]:
    """The items of a local file in completion style. Raises: ValueError naming a bad line."""
    return tuple(completion_item(where, row) for where, row in rows_of_file(path))


def items_from_hub(
    revision: str = REVISION, sha256: str | None = VALIDATION_SHA256
) -> tuple[Item, ...]:
    """The validation split in completion style, from the Hub or its cache on this machine.

    Raises: DataUnavailable, after a few seconds, if it is in neither.
    """
    hub = HubFile(_REPOSITORY, VALIDATION_FILE, revision, sha256)
    return tuple(completion_item(w, row) for w, row in rows_of_hub(hub, HELLASWAG.option))
