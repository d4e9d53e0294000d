"""WikiText-2: perplexity of its test articles, as lm-evaluation-harness computes it.

The model reads an article with ordinary spacing, as the harness's `wikitext`, version 2.0, makes
it. Words and bytes are counted in the original article. Source: https://arxiv.org/abs/1609.07843
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eval.result import ItemTable, TaskResult, item_ids, perplexity
from eval.scoring.multiple_choice import check_losses
from eval.scoring.shared_context import SharedContext, score_contexts
from eval.subject import EvalOptions, Subject
from eval.tasks.items import HubTable, ItemSource, read_items

# Replacements that undo the corpus's own spacing, in this order. Some have no effect; they stay,
# because published numbers were made with exactly this list.
# Source: lm_eval/tasks/wikitext/preprocess_wikitext.py
_PLAIN_FIRST = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
_PAIRED = (
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)
_PLAIN_LAST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def wikitext(subject: Subject, options: EvalOptions) -> TaskResult:
    """The task: `wikitext/word_perplexity`, `/byte_perplexity` and `/bits_per_byte`."""
    pages = read_items(WIKITEXT, subject, options)
    windows: list[SharedContext] = []
    owners: list[int] = []  # the page of each window
    for number, page in enumerate(pages):
        ids = subject.tokenizer.encode(detokenized(page))
        windows += text_windows(
            ids, subject.tokenizer.end_of_text, subject.model.config.context_length
        )
        owners += [number] * (len(windows) - len(owners))
    by_window = score_contexts(subject, windows, options)[:, 0]
    check_losses(by_window, owners)
    nats = np.bincount(owners, by_window, minlength=len(pages))
    words = np.array([len(re.split(r"\s+", page)) for page in pages])
    text_bytes = sum(len(page.encode()) for page in pages)
    total = math.fsum(nats)
    tags = {
        "wikitext/word_perplexity": perplexity(total / int(words.sum())),
        "wikitext/byte_perplexity": perplexity(total / text_bytes),
        "wikitext/bits_per_byte": total / text_bytes / math.log(2),
    }
    labels = np.zeros(len(pages), np.int64)
    table = ItemTable(item_ids(pages), labels, nats[:, None], words[:, None])
    return TaskResult(tags, {"wikitext": table})


def detokenized(page: str) -> str:
    """The article with ordinary spacing."""
    for old, new in _PLAIN_FIRST:
        page = page.replace(old, new)
    for pattern, new in _PAIRED:
        page = re.sub(pattern, new, page)
    for old, new in _PLAIN_LAST:
        page = page.replace(old, new)
    return page


def text_windows(
    ids: Sequence[int], end_of_text: int, context_length: int
) -> Iterator[SharedContext]:
    """Windows in which every token of a text is predicted once, `context_length` per window.

    The last window is as long as the others; its first tokens only serve as context.
    Source: lm_eval/utils.py, `get_rolling_token_windows` with a context of one token.
    """
    ids = [end_of_text, *ids]
    for start in range(0, len(ids) - 1, context_length):
        end = min(start + context_length, len(ids) - 1)
        begin = max(0, end - context_length) if start else 0
        yield SharedContext(ids[begin : start + 1], (ids[start + 1 : end + 1],))


def _wikitext_page(where: str, row: Any) -> str:
    """The text of an article. Raises: ValueError if the row has none."""
    if not isinstance(row, dict) or not isinstance(row.get("page"), str):
        raise ValueError(f"{where} must have a text as page; give the document-level test split")
    return row["page"]


_REVISION = "647234772b9554e208af6c826f23b99e3cac88c8"
_HUB = HubTable("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test", _REVISION)
WIKITEXT = ItemSource("wikitext", _HUB, _wikitext_page)
