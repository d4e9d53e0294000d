"""The report on evaluation items in training text: as JSON, and as a table."""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from data_prep.dataset.manifest import SplitEntry, SplitName
from data_prep.dataset.shards import DataSet
from eval.scoring.multiple_choice import Item
from eval.tasks.hellaswag import MARKS
from eval.text_search.ngrams import FOLD_RULE
from storage.digest import fingerprint

# Ways to find an item, by name, with their text in the report.
_RULES = {
    "ngram": "{words} words in a row of context and right ending, or a shorter item of {shortest} "
    "words or more as a whole",
    "right_ending": "the right ending as a whole, if it has {shortest} words or more",
    "any_ending": "any ending as a whole, if it has {shortest} words or more",
}


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


@dataclass(frozen=True)
class Outcome:
    """The result of one rule. Items are numbered over all sets."""

    testable: set[int]
    """Items that are long enough for the rule."""
    found: dict[int, tuple[int, str]]
    """For each item found: the first document that holds it, and the words found there."""

    def __or__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.testable | other.testable, self.found | other.found)


def contamination_report(
    searched: Sequence[DataSet],
    sets: Sequence[ItemSet],
    outcomes: Sequence[dict[str, Outcome]],
    split: SplitName,
    words: int,
    shortest: int,
) -> dict[str, Any]:
    """The report as JSON; the same for any number of workers.

    Of several data sets it has what is in any of them, and then each by its folder.
    """
    each = [{"folder": str(d.folder)} | _facts(d, split) for d in searched]
    found = [
        _Searched(str(data.folder), data.manifest.split(split), outcome)
        for data, outcome in zip(searched, outcomes, strict=True)
    ]
    report = {
        "data": each[0] if len(each) == 1 else each,
        "rule": {
            **{name: rule.format(words=words, shortest=shortest) for name, rule in _RULES.items()},
            "normalisation": FOLD_RULE,
            "left_out_of_items": MARKS.pattern,
            "unicode": unicodedata.unidata_version,
            "document": "counted from 0 over the split, in file order",
            "source": "https://arxiv.org/abs/2005.14165, appendix C",
        },
        "items": _by_set(found, sets),
    }
    if len(found) > 1:
        report["items_by_data"] = {one.folder: _by_set([one], sets) for one in found}
    return report


def _facts(data: DataSet, split: SplitName) -> dict[str, Any]:
    entry = data.manifest.split(split)
    return {
        "fingerprint": data.fingerprint,
        "split": split,
        "documents": entry.documents,
        "tokens": entry.tokens,
        "text_bytes": entry.text_bytes,
    }


@dataclass(frozen=True)
class _Searched:
    """What was found in one data set."""

    folder: str
    entry: SplitEntry
    outcomes: dict[str, Outcome]

    def place(self, rule: str, item: int) -> dict[str, Any]:
        """The first document of an item that a rule has found."""
        document, words = self.outcomes[rule].found[item]
        ends = list(accumulate(shard.documents for shard in self.entry.shards))
        shard = self.entry.shards[bisect_right(ends, document)].name
        return {"shard": shard, "document": document, "words": words}


def _by_set(found: Sequence[_Searched], sets: Sequence[ItemSet]) -> dict[str, Any]:
    """The report of each set of items, on what any of these data sets holds."""
    by_set, begin = {}, 0
    for item_set in sets:
        numbered = dict(enumerate(item_set.ids, start=begin))
        begin += len(numbered)
        by_set[item_set.name] = {
            "items": len(numbered),
            "items_sha256": item_set.sha256,
            "id_key": item_set.id_key,
        } | {name: _rule_report(found, name, numbered) for name in found[0].outcomes}
    return by_set


def _rule_report(found: Sequence[_Searched], rule: str, ids: dict[int, Any]) -> dict[str, Any]:
    """The report of one rule on one set of items, whose ids are given by the item's number."""
    first_found = []
    for i in sorted(ids.keys() & {n for one in found for n in one.outcomes[rule].found}):
        holder = next(one for one in found if i in one.outcomes[rule].found)
        where = {"data": holder.folder} if len(found) > 1 else {}
        first_found.append({"id": ids[i], **where, **holder.place(rule, i)})
    can_be_found = found[0].outcomes[rule].testable
    testable = len(ids.keys() & can_be_found)
    return {
        "testable": testable,
        "found": len(first_found),
        "share_of_testable": len(first_found) / testable if testable else None,
        "found_ids": [entry["id"] for entry in first_found],
        "first_found": first_found,
        "untestable_ids": [id_ for i, id_ in ids.items() if i not in can_be_found],
    }


def contamination_table(report: dict[str, Any]) -> str:
    """The counts of the report as a table."""
    data = report["data"]
    lines = [
        f"{one['split']} documents of {one['folder']}: {one['documents']:,} of "
        f"{one['text_bytes']:,} bytes, fingerprint {one['fingerprint'][:16]}"
        for one in (data if isinstance(data, list) else [data])
    ]
    lines.append(f"{'found':>7} {'of testable':>12} {'share':>9}  what")
    for set_name, entry in report["items"].items():
        lines.append(f"{set_name}: {entry['items']:,} items")
        for name in _RULES:
            lines.append(_row(entry[name], report["rule"][name]))
            for folder, items in report.get("items_by_data", {}).items():
                lines.append(_row(items[set_name][name], f"  in {folder}"))
    return "\n".join(lines)


def _row(found: dict[str, Any], what: str) -> str:
    share = found["share_of_testable"]
    percent = "-" if share is None else f"{share:.3%}"
    return f"{found['found']:7,} {found['testable']:12,} {percent:>9}  {what}"
