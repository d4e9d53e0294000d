"""PIQA, ARC-Easy and OpenBookQA: multiple choice with the prompts of lm-evaluation-harness.

Another task of this kind needs a function that reads its rows, an ItemSource below, and a line in
registry.py. Sources: https://arxiv.org/abs/1911.11641, https://arxiv.org/abs/1803.05457,
https://arxiv.org/abs/1809.02789; prompts of lm_eval/tasks/{piqa,arc,openbookqa}, version 1.0.
"""

from dataclasses import replace
from typing import Any

from eval.result import TaskResult
from eval.scoring.multiple_choice import Item, item_from_row, score_items
from eval.subject import EvalOptions, Subject
from eval.tasks.few_shot import few_shot_name, with_examples
from eval.tasks.items import HubTable, ItemSource, read_examples, read_items


def question_task(source: ItemSource[Item], subject: Subject, options: EvalOptions) -> TaskResult:
    """The task: `NAME/acc` by summed loss and `NAME/acc_norm` per character of the answer."""
    items = read_items(source, subject, options)
    if options.few_shot:
        pool = read_examples(source, subject, options)
        items = with_examples(source, items, pool, options.few_shot)
    name = few_shot_name(source.task, options.few_shot)
    return score_items(subject, items, options).result(name)


def piqa_item(where: str, row: Any) -> Item:
    """A goal and two solutions as an item. Raises: ValueError if the row has another schema."""
    goal, one, two, label = _fields(where, row, "goal", "sol1", "sol2", "label")
    return item_from_row(where, f"Question: {goal}\nAnswer:", [one, two], label, harness=True)


def arc_item(where: str, row: Any) -> Item:
    """A question and its answers as an item; the answers are named by letters or digits."""
    (question,) = _fields(where, row, "question")
    endings, label = _answers(where, row)
    return item_from_row(where, f"Question: {question}\nAnswer:", endings, label, harness=True)


def openbookqa_item(where: str, row: Any) -> Item:
    """The beginning of a sentence and its possible endings as an item."""
    (stem,) = _fields(where, row, "question_stem")
    endings, label = _answers(where, row)
    return item_from_row(where, stem, endings, label, harness=True)


def _answers(where: str, row: dict[str, Any]) -> tuple[list[str], int | str]:
    """The answers and the index of the right one, which is "" in a split without labels."""
    choices, key = _fields(where, row, "choices", "answerKey")
    texts, names = _fields(where, choices, "text", "label")
    key = str(key).strip()
    if key and key not in names:
        raise ValueError(f"{where} has answerKey {key!r}, which is none of {names}; correct it")
    return list(texts), list(names).index(key) if key else ""


def _fields(where: str, row: Any, *names: str) -> list[Any]:
    if not isinstance(row, dict) or not set(names) <= row.keys():
        raise ValueError(
            f"{where} must have {', '.join(names)}; give a split as published on the Hub"
        )
    return [row[name] for name in names]


# Not ybisk/piqa: it needs a loading script, which `datasets` 4 and later refuse to run.
_PIQA = HubTable("baber/piqa", None, "validation", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1")
_ARC = HubTable("allenai/ai2_arc", "ARC-Easy", "test", "210d026faf9955653af8916fad021475a3f00453")
_BOOK = HubTable("allenai/openbookqa", "main", "test", "388097ea7776314e93a529163e0fea805b8a6454")

PIQA = ItemSource("piqa", _PIQA, piqa_item, replace(_PIQA, split="train"), spare_example=True)
ARC_EASY = ItemSource("arc_easy", _ARC, arc_item, replace(_ARC, split="train"))
OPENBOOKQA = ItemSource("openbookqa", _BOOK, openbookqa_item, replace(_BOOK, split="train"))
