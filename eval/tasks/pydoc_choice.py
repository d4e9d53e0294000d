"""48 questions about Python's documentation and everyday facts, written for this project.

They need no download and fit a small context. They show that a model learns something; they are
not a benchmark.
"""

from pathlib import Path

from eval.result import TaskResult
from eval.scoring.multiple_choice import score_items
from eval.subject import EvalOptions, Subject
from eval.tasks.hellaswag import items_from_file
from parallel.collectives import on_main

ITEMS_FILE = Path(__file__).with_name("pydoc_choice.jsonl")


def pydoc_choice(subject: Subject, options: EvalOptions) -> TaskResult:
    """The task: `pydoc_choice/acc` and `pydoc_choice/acc_norm`; chance is 1 in 4."""
    items = on_main(lambda: items_from_file(ITEMS_FILE))[: options.items]
    return score_items(subject, items, options).result("pydoc_choice")
