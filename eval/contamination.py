"""Finds evaluation items in the training text: n-grams of words, and whole endings.

    python eval/contamination.py --data data/fineweb_edu --tasks hellaswag --json contamination.json

Reads a data set and multiple-choice items. Prints a table and writes a .json that a report of an
evaluation can cite. An item counts as found if any 13 consecutive words of its context and right
ending occur in one training document, as in GPT-3's appendix C (https://arxiv.org/abs/2005.14165).
A shorter item, and an ending, is only searched as a whole, and only if it has 8 words or more.
"""

import logging
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from data_prep.dataset.manifest import SplitEntry, SplitName
from data_prep.dataset.shards import DataSet, check_data_set, open_data_set
from data_prep.worker_processes import default_workers
from eval.scoring.multiple_choice import Item
from eval.tasks.hellaswag import MARKS, completion_item, items_from_hub
from eval.tasks.items import rows_of_file
from eval.tasks.pydoc_choice import ITEMS_FILE as PYDOC_CHOICE_FILE
from eval.text_search.ngrams import FOLD_RULE, NOT_FOUND, Patterns, all_runs, whole_texts
from eval.text_search.shard_search import search_split
from parallel.ranks import silence_other_ranks, user_errors
from storage.digest import fingerprint
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
# Ways to find an item, by name, with their text in the report.
_RULES = {
    "ngram": "{words} words in a row of context and right ending, or a shorter item of {shortest} "
    "words or more as a whole",
    "right_ending": "the right ending as a whole, if it has {shortest} words or more",
    "any_ending": "any ending as a whole, if it has {shortest} words or more",
}


@dataclass(frozen=True)
class Arguments:
    """Search the training text for evaluation items."""

    data: Path
    """Data set folder, such as data/fineweb_edu."""
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


@dataclass(frozen=True)
class ItemSet:
    """The items of one task or file, with an id for each."""

    name: str
    items: tuple[Item, ...]
    id_key: str
    """The key of the rows that holds `ids`, or "position" if they count the rows from 0."""
    ids: list[Any]

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"{self.name} holds no items; give a file with some items")

    @property
    def sha256(self) -> str:
        """Digest of the items' content: the same for a compressed file and the Hub's."""
        return fingerprint([[i.context, i.endings, i.label] for i in self.items])


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


@dataclass(frozen=True)
class Outcome:
    """The result of one rule. Items are numbered over all sets."""

    testable: set[int]
    """Items that are long enough for the rule."""
    found: dict[int, tuple[int, str]]
    """For each item found: the first document that holds it, and the words found there."""

    def __or__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.testable | other.testable, self.found | other.found)


def _outcome(patterns: Patterns, items: np.ndarray, first: np.ndarray) -> Outcome:
    """The outcome for patterns, given the item (or _NO_ITEM) and first document of each."""
    seen = np.flatnonzero((items != _NO_ITEM) & (first != NOT_FOUND))
    seen = seen[np.lexsort((patterns.starts[seen], first[seen], items[seen]))]
    _, earliest = np.unique(items[seen], return_index=True)
    found = {int(items[i]): (int(first[i]), patterns.words(i)) for i in seen[earliest]}
    return Outcome(set(items.tolist()) - {_NO_ITEM}, found)


def search_items(data: DataSet, items: Sequence[Item], arguments: Arguments) -> dict[str, Outcome]:
    """Search the split for all items. Returns one outcome per rule, by its name in _RULES."""
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
    in_runs, in_short, in_endings = search_split(data, arguments.split, kinds, workers)

    # For every ending: its item, and whether it is the right one.
    roles = [(i, c == item.label) for i, item in enumerate(items) for c in range(len(item.endings))]
    owners, are_right = np.array(roles).T[:, endings.texts]
    return {
        "ngram": _outcome(runs, runs.texts, in_runs) | _outcome(short, short.texts, in_short),
        "right_ending": _outcome(endings, np.where(are_right, owners, _NO_ITEM), in_endings),
        "any_ending": _outcome(endings, owners, in_endings),
    }


def contamination_report(
    data: DataSet, sets: Sequence[ItemSet], outcomes: dict[str, Outcome], arguments: Arguments
) -> dict[str, Any]:
    """The report as JSON; the same for any number of workers."""
    entry = data.manifest.split(arguments.split)
    by_set, begin = {}, 0
    for item_set in sets:
        numbered = dict(enumerate(item_set.ids, start=begin))
        begin += len(numbered)
        by_set[item_set.name] = {
            "items": len(numbered),
            "items_sha256": item_set.sha256,
            "id_key": item_set.id_key,
        } | {name: _rule_report(outcome, numbered, entry) for name, outcome in outcomes.items()}
    return {
        "data": {
            "folder": str(data.folder),
            "fingerprint": data.fingerprint,
            "split": arguments.split,
            "documents": entry.documents,
            "tokens": entry.tokens,
            "text_bytes": entry.text_bytes,
        },
        "rule": {
            **{
                name: rule.format(words=arguments.words, shortest=arguments.shortest)
                for name, rule in _RULES.items()
            },
            "normalisation": FOLD_RULE,
            "left_out_of_items": MARKS.pattern,
            "unicode": unicodedata.unidata_version,
            "document": "counted from 0 over the split, in file order",
            "source": "https://arxiv.org/abs/2005.14165, appendix C",
        },
        "items": by_set,
    }


def _rule_report(outcome: Outcome, ids: dict[int, Any], entry: SplitEntry) -> dict[str, Any]:
    """The report of one rule on one set of items, whose ids are given by the item's number."""
    ends = list(accumulate(shard.documents for shard in entry.shards))
    first_found = []
    for i in sorted(ids.keys() & outcome.found.keys()):
        document, words = outcome.found[i]
        shard = entry.shards[bisect_right(ends, document)].name
        first_found.append({"id": ids[i], "shard": shard, "document": document, "words": words})
    testable = len(ids.keys() & outcome.testable)
    return {
        "testable": testable,
        "found": len(first_found),
        "share_of_testable": len(first_found) / testable if testable else None,
        "found_ids": [entry["id"] for entry in first_found],
        "first_found": first_found,
        "untestable_ids": [id_ for i, id_ in ids.items() if i not in outcome.testable],
    }


def contamination_table(report: dict[str, Any]) -> str:
    """The counts of the report as a table."""
    data = report["data"]
    lines = [
        f"{data['split']} documents of {data['folder']}: {data['documents']:,} of "
        f"{data['text_bytes']:,} bytes, fingerprint {data['fingerprint'][:16]}",
        f"{'found':>7} {'of testable':>12} {'share':>9}  what",
    ]
    for set_name, entry in report["items"].items():
        lines.append(f"{set_name}: {entry['items']:,} items")
        for name in _RULES:
            row, share = entry[name], entry[name]["share_of_testable"]
            percent = "-" if share is None else f"{share:.3%}"
            what = report["rule"][name]
            lines.append(f"{row['found']:7,} {row['testable']:12,} {percent:>9}  {what}")
    return "\n".join(lines)


def main() -> None:
    """Parse the options, read the items, search the data set, write the report."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        sets = item_sets(arguments)
        data = open_data_set(arguments.data)
        check_data_set(data, "cached")
        items = [item for item_set in sets for item in item_set.items]
        report = contamination_report(data, sets, search_items(data, items, arguments), arguments)
        log.info("%s", contamination_table(report))
        write_json_target(arguments.json, report)


if __name__ == "__main__":
    main()
