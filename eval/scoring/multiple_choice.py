"""Multiple choice: the model's answer is the ending with the smallest loss.

Items go in, a table with the loss of every ending comes out (`Scores`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from data_prep.tokenizer import Tokenizer
from eval.result import ItemTable, TaskResult, accuracy_tags, item_ids
from eval.scoring.shared_context import SharedContext, score_contexts, truncated_contexts
from eval.subject import EvalOptions, Subject

log = logging.getLogger(__name__)
_warned: set[str] = set()  # what this process has already logged of items left out

_EncodedItem = tuple[list[int], tuple[list[int], ...]]
"""The token ids of a context and of each of its endings."""


@dataclass(frozen=True)
class Item:
    """One question. Scoring puts a space between the context and an ending."""

    context: str
    endings: tuple[str, ...]
    label: int
    """Index of the right ending."""
    harness: bool = False
    """Whether to score as lm-evaluation-harness does: context and ending are tokenised together,
    and `acc_norm` is per character. Otherwise they are tokenised apart, and it is per token."""
    original: bool = True
    """Whether the text is as published, as far as its row shows."""

    def __post_init__(self) -> None:
        if not 0 <= self.label < len(self.endings):
            raise ValueError(
                f"label {self.label} is not one of {len(self.endings)} endings; count from 0"
            )


def item_from_row(
    where: str, context: Any, endings: Any, label: Any, text: str = "context", harness: bool = False
) -> Item:
    """Check the fields of a row and make an item of them.

    `where` and `text`, the schema's name of the context, are for messages. Raises: ValueError.
    """
    texts = [context, *endings] if isinstance(endings, list) else [None]
    if len(texts) < 3 or not all(isinstance(value, str) for value in texts):
        raise ValueError(
            f"{where} must have a text as {text} and a list of two or more as endings; give the "
            "split as published"
        )
    label = str(label)
    if not label:
        raise ValueError(f"{where} has an empty label, as a test split does; give one with labels")
    if not label.isdecimal() or int(label) >= len(endings):
        raise ValueError(
            f"{where} has label {label!r}, which must be 0 to {len(endings) - 1}; correct the line"
        )
    return Item(context, tuple(endings), int(label), harness)


@dataclass(frozen=True)
class Scores:
    """The loss of every ending of every item, in the order of the items."""

    items: tuple[Item, ...]
    sums: np.ndarray
    """Summed loss of each ending, in nats; inf if an item has fewer. Shape (items, endings)."""
    tokens: np.ndarray
    """Tokens of each ending; 1 if an item has fewer. Shape (items, endings)."""
    truncated_rows: int
    """Endings whose context was cut from the left to fit the model's context length."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Items that cannot be scored, by their number, with the reason; they are not in `items`."""

    @property
    def lengths(self) -> np.ndarray:
        """What `acc_norm` divides by: tokens, or characters in harness style. Shape as `sums`."""
        lengths = self.tokens.copy()
        for row, item in zip(lengths, self.items, strict=True):
            if item.harness:
                row[: len(item.endings)] = list(map(len, item.endings))
        return lengths

    @property
    def means(self) -> np.ndarray:
        """Nats per token (or character) of each ending; inf if it has none. Shape as `sums`."""
        return np.divide(
            self.sums, self.lengths, out=np.full(self.sums.shape, np.inf), where=self.lengths > 0
        )

    def result(self, task: str) -> TaskResult:
        """`acc` by the smallest sum and `acc_norm` by the smallest mean, with standard errors."""
        labels = np.array([item.label for item in self.items])
        chosen = {"acc": self.sums.argmin(axis=1), "acc_norm": self.means.argmin(axis=1)}
        tags: dict[str, float] = {}
        for tag, predictions in chosen.items():
            tags |= accuracy_tags(f"{task}/{tag}", predictions == labels)
        if self.truncated_rows:
            tags[f"{task}/truncated_rows"] = float(self.truncated_rows)
        tags |= left_out_tags(task, self.left_out)
        ids = item_ids([[i.context, i.endings, i.label] for i in self.items])
        return TaskResult(tags, {task: ItemTable(ids, labels, self.sums, self.lengths, chosen)})


def score_items(subject: Subject, items: Sequence[Item], options: EvalOptions) -> Scores:
    """The losses of all endings, the same for any number of ranks.

    An item with an ending that has no tokens or does not fit the model is left out.
    Raises: ValueError if no item can be scored, or if a loss is not finite.
    """
    if not items:
        raise ValueError("there are no items to score; give a file with some items")
    fitted = contexts_of_items(subject.tokenizer, subject.model.config.context_length, tuple(items))
    kept = fitted.kept(items)
    nats = score_contexts(subject, fitted.contexts, options)[:, 0]
    check_losses(nats, [i for i, item in kept.items() for _ in item.endings])
    counts = np.array([len(item.endings) for item in kept.values()])
    exists = np.arange(counts.max()) < counts[:, None]  # (items, endings)
    sums, tokens = np.full(exists.shape, np.inf), np.ones(exists.shape, np.int64)
    sums[exists] = nats
    tokens[exists] = [len(ending) for one in fitted.contexts for ending in one.continuations]
    return Scores(tuple(kept.values()), sums, tokens, fitted.truncated, fitted.left_out)


def check_losses(nats: np.ndarray, owners: Sequence[int]) -> None:
    """Raises: ValueError naming the first item with a loss that is not finite."""
    broken = np.flatnonzero(~np.isfinite(nats))
    if len(broken):
        raise ValueError(
            f"the loss of item {owners[broken[0]]} is {nats[broken[0]]}, like that of "
            f"{len(broken)} of {len(nats)} endings; the weights are damaged or have diverged"
        )


@dataclass(frozen=True)
class _FittedItems:
    """Tokenised items, as contexts that fit the model."""

    contexts: list[SharedContext]
    """Of all items that can be scored, in order."""
    truncated: int
    """Endings that lost a part of their context."""
    left_out: dict[int, str]
    """Items that cannot be scored, by their number, with the reason."""

    def kept(self, items: Sequence[Item]) -> dict[int, Item]:
        """The items that can be scored, by their number. Raises: ValueError if there are none."""
        if len(self.left_out) == len(items):
            raise ValueError(f"no item can be scored; item 0: {self.left_out[0]}")
        return {i: item for i, item in enumerate(items) if i not in self.left_out}


@lru_cache(maxsize=8)
def contexts_of_items(
    tokenizer: Tokenizer, context_length: int, items: tuple[Item, ...]
) -> _FittedItems:
    """Tokenise items. Cached, because training scores the same items again and again."""
    contexts, truncated, left_out = [], 0, {}
    for number, item in enumerate(items):
        context, endings = _encode_item(tokenizer, item)
        reasons = (why_unscorable(ending, context_length) for ending in endings)
        wrong = next(((choice, reason) for choice, reason in enumerate(reasons) if reason), None)
        if wrong:
            left_out[number] = f"ending {wrong[0]} {wrong[1]}"
            continue
        fitted, lost = truncated_contexts(context, endings, context_length)
        contexts += fitted
        truncated += lost
    return _FittedItems(contexts, truncated, left_out)


def why_unscorable(ending: Sequence[int], context_length: int) -> str:
    """Why the model cannot score an ending of these tokens; empty if it can."""
    if 0 < len(ending) <= context_length:
        return ""
    return (
        f"has {len(ending)} tokens, but it must have 1 to {context_length} (the model's "
        "context_length)"
    )


def left_out_tags(task: str, left_out: dict[int, str]) -> dict[str, float]:
    """The tag that counts items left out, with a warning that names the first of them."""
    if not left_out:
        return {}
    number, reason = next(iter(left_out.items()))
    warning = f"{task}: {len(left_out)} of its items left out, such as item {number}: {reason}"
    if warning not in _warned:
        _warned.add(warning)
        log.warning("%s", warning)
    return {f"{task}/unscorable_items": float(len(left_out))}


def _encode_item(tokenizer: Tokenizer, item: Item) -> _EncodedItem:
    """Tokenise an item in its style."""
    if item.harness:
        return encode_together(tokenizer, item.context, [" " + text for text in item.endings])
    # Tokenised apart, as build-nanogpt does. For HellaSwag's 40,168 endings the ids are the same
    # as if context and ending were tokenised together.
    endings = (tokenizer.encode(" " + text) if text.strip() else [] for text in item.endings)
    # The model needs at least one token before an ending: end-of-text starts a new document.
    return tokenizer.encode(item.context) or [tokenizer.end_of_text], tuple(endings)


def encode_together(tokenizer: Tokenizer, context: str, endings: Sequence[str]) -> _EncodedItem:
    """Tokenise each ending together with its context, by lm-evaluation-harness's rule.

    Spaces at the end of the context belong to the ending. The ending's tokens are those of the
    whole text after as many as the context alone has. Source: lm_eval/api/model.py, `_encode_pair`.
    """
    kept = context.rstrip()
    if not context:
        return [tokenizer.end_of_text], tuple(tokenizer.encode(text) for text in endings)
    before = tokenizer.encode(kept)
    after = []
    for text in endings:
        ids = tokenizer.encode(context + text)[len(before) :]
        # "hello wor" and "ld" join to fewer tokens than "hello wor" has. The harness fails there
        # (its issue 1053); the ending is then tokenised apart.
        after.append(ids or tokenizer.encode(context[len(kept) :] + text))
    return before or [tokenizer.end_of_text], tuple(after)
