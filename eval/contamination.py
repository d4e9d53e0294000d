"""Finds evaluation items in the training text: n-grams of words, and whole endings.

    python eval/contamination.py --data data/fineweb_edu --tasks hellaswag --json contamination.json

Reads a data set, or those of a mixture, and multiple-choice items. Prints a table and writes a
.json that a report of an evaluation can cite. An item counts as found if any 13 consecutive words
of its context and right ending occur in one training document, as in GPT-3's appendix C
(https://arxiv.org/abs/2005.14165). A shorter item, and an ending, is only searched as a whole, and
only if it has 8 words or more.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from data_prep.audit.run_data import folders_named
from data_prep.dataset.manifest import SplitName
from data_prep.dataset.shards import DataSet, check_data_set, open_data_set
from data_prep.worker_processes import default_workers
from eval.scoring.multiple_choice import Item
from eval.tasks.hellaswag import MARKS, completion_item, items_from_hub
from eval.tasks.items import rows_of_file
from eval.tasks.pydoc_choice import ITEMS_FILE as PYDOC_CHOICE_FILE
from eval.text_search.ngrams import NOT_FOUND, Patterns, all_runs, whole_texts
from eval.text_search.report import (
    ItemSet,
    Outcome,
    contamination_report,
    contamination_table,
)
from eval.text_search.shard_search import search_split
from parallel.ranks import silence_other_ranks, user_errors
from storage.script_options import parse_options
from storage.terminal.json_output import check_json_target, write_json_target

log = logging.getLogger("eval")

_ITEM_TASKS = ("hellaswag", "pydoc_choice")
_TASKS_HELP = (
    f"Tasks whose items to search for: {', '.join(_ITEM_TASKS)}. Default: {_ITEM_TASKS[0]}, unless "
    "--items-file is given."
)
_MIN_WHOLE_WORDS = 8  # GPT-3's smallest n: fewer words occur together by chance
_ID_KEYS = ("val_index", "ind")  # keys that may identify a row, in this order
_NO_ITEM = -1  # in place of an item's number, where a rule ignores a pattern


@dataclass(frozen=True)
class Arguments:
    """Search the training text for evaluation items."""

    data: tuple[Path, ...]
    """Data set folder, such as data/fineweb_edu; of several, each is searched and all together."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(help=_TASKS_HELP)] = ()
    hellaswag_file: Path | None = None
    """HellaSwag items as .jsonl, .jsonl.xz or .jsonl.gz; default: the Hugging Face Hub's."""
    items_file: tuple[Path, ...] = ()
    """Files of other items in HellaSwag's schema: .jsonl, .jsonl.xz, .jsonl.gz or .parquet."""
    json: Path | None = None
    """JSON file to write the report to; -: standard output."""
    split: SplitName = "train"
    """The documents to search: train or val."""
    words: int = 13
    """Length of the n-grams in words."""
    workers: int | None = None
    """Worker processes; default: one per core. Does not change what is found."""

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in _ITEM_TASKS:
                raise ValueError(
                    f"the items of {name} cannot be searched for; use "
                    f"{', '.join(_ITEM_TASKS)}, or give other items as --items-file"
                )
        if self.words < 2 or (self.workers is not None and self.workers < 1):
            raise ValueError(
                f"words={self.words} and workers={self.workers} must be at least 2 and 1"
            )
        for path in filter(None, (self.hellaswag_file, *self.items_file)):
            if not path.is_file():
                raise ValueError(
                    f"{path} is no file; give a .jsonl, .jsonl.xz, .jsonl.gz or .parquet file"
                )
        check_json_target(self.json)

    @property
    def shortest(self) -> int:
        """Number of words that a text needs to be searched as a whole."""
        return min(_MIN_WHOLE_WORDS, self.words)


def item_sets(arguments: Arguments) -> list[ItemSet]:
    """Read the items of --tasks and --items-file. Raises: ValueError if that fails."""
    files = {str(path): path for path in arguments.items_file}
    tasks = arguments.tasks or (() if files else ("hellaswag",))
    if "pydoc_choice" in tasks:
        files = {"pydoc_choice": PYDOC_CHOICE_FILE, **files}
    if "hellaswag" in tasks and arguments.hellaswag_file is not None:
        files = {"hellaswag": arguments.hellaswag_file, **files}
    sets = [_from_file(name, path) for name, path in files.items()]
    if "hellaswag" in tasks and arguments.hellaswag_file is None:
        items = items_from_hub()
        # The rows on the Hub have no val_index, but are in that order.
        sets.insert(0, ItemSet("hellaswag", items, "position", list(range(len(items)))))
    return sets


def _from_file(name: str, path: Path) -> ItemSet:
    """The items of a file. Their ids are from the first of _ID_KEYS that is unique in every row."""
    rows = list(rows_of_file(path))
    items = tuple(completion_item(where, row) for where, row in rows)
    for key in _ID_KEYS:
        ids = [row.get(key) for _, row in rows]
        if all(isinstance(value, int | str) for value in ids) and len(set(ids)) == len(ids):
            return ItemSet(name, items, key, ids)
    return ItemSet(name, items, "position", list(range(len(items))))


def _outcome(patterns: Patterns, items: np.ndarray, first: np.ndarray) -> Outcome:
    """The outcome for patterns, given the item (or _NO_ITEM) and first document of each."""
    seen = np.flatnonzero((items != _NO_ITEM) & (first != NOT_FOUND))
    seen = seen[np.lexsort((patterns.starts[seen], first[seen], items[seen]))]
    _, earliest = np.unique(items[seen], return_index=True)
    found = {int(items[i]): (int(first[i]), patterns.words(i)) for i in seen[earliest]}
    return Outcome(set(items.tolist()) - {_NO_ITEM}, found)


def search_items(
    searched: Sequence[DataSet], items: Sequence[Item], arguments: Arguments
) -> list[dict[str, Outcome]]:
    """Search the split of each data set for all items.

    Returns for each data set one outcome per rule, by its name in _RULES.
    """
    texts = [MARKS.sub(" ", f"{item.context} {item.endings[item.label]}") for item in items]
    runs = all_runs(texts, arguments.words)
    long = set(runs.texts.tolist())
    # An empty text is never searched for. It takes the place of a long item, so that the index of a
    # text stays the number of its item.
    short = whole_texts(["" if i in long else t for i, t in enumerate(texts)], arguments.shortest)
    choices = [MARKS.sub(" ", ending) for item in items for ending in item.endings]
    endings = whole_texts(choices, arguments.shortest)

    workers = arguments.workers or default_workers()
    kinds = (runs, short, endings)
    # For every ending: its item, and whether it is the right one.
    roles = [(i, c == item.label) for i, item in enumerate(items) for c in range(len(item.endings))]
    owners, are_right = np.array(roles).T[:, endings.texts]
    outcomes = []
    for data in searched:
        in_runs, in_short, in_endings = search_split(data, arguments.split, kinds, workers)
        ngram = _outcome(runs, runs.texts, in_runs) | _outcome(short, short.texts, in_short)
        outcomes.append(
            {
                "ngram": ngram,
                "right_ending": _outcome(
                    endings, np.where(are_right, owners, _NO_ITEM), in_endings
                ),
                "any_ending": _outcome(endings, owners, in_endings),
            }
        )
    return outcomes


def main() -> None:
    """Parse the options, read the items, search the data set, write the report."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        sets = item_sets(arguments)
        searched = [open_data_set(folder) for folder in folders_named(arguments.data)]
        for data in searched:
            check_data_set(data, "cached")
        items = [item for item_set in sets for item in item_set.items]
        outcomes = search_items(searched, items, arguments)
        report = contamination_report(
            searched, sets, outcomes, arguments.split, arguments.words, arguments.shortest
        )
        log.info("%s", contamination_table(report))
        write_json_target(arguments.json, report)


if __name__ == "__main__":
    main()
