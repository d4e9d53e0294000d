"""LAMBADA in OpenAI's version: predict the last word of a passage.

Prompt, accuracy and perplexity are those of lm-evaluation-harness's `lambada_openai`, version 1.0.
GPT-2 124M gets accuracy 0.3256 and perplexity 40.06 there
(https://github.com/EleutherAI/lm-evaluation-harness/issues/2159).
Source: https://arxiv.org/abs/1606.06031
"""

import math
from typing import Any

import numpy as np

from eval.result import ItemTable, TaskResult, accuracy_tags, item_ids, perplexity
from eval.scoring.multiple_choice import Item, check_losses, contexts_of_items, left_out_tags
from eval.scoring.shared_context import score_contexts
from eval.subject import EvalOptions, Subject
from eval.tasks.items import HubTable, ItemSource, read_items

_NOT_PREDICTED = -1  # the prediction if greedy decoding gives another word


def lambada(subject: Subject, options: EvalOptions) -> TaskResult:
    """The task: `lambada/acc`, right if greedy decoding gives the word, and `lambada/perplexity`.

    The perplexity is per word, whatever its number of tokens.
    """
    items = read_items(LAMBADA, subject, options)
    context_length = subject.model.config.context_length
    fitted = contexts_of_items(subject.tokenizer, context_length, items)
    kept = fitted.kept(items)
    nats, not_greedy = score_contexts(subject, fitted.contexts, options).T
    check_losses(nats, list(kept))
    right = not_greedy == 0
    per_word = perplexity(float(nats.mean()))
    tags = {**accuracy_tags("lambada/acc", right), "lambada/perplexity": per_word}
    if len(nats) > 1:
        error = nats.std(ddof=1) / math.sqrt(len(nats))
        # First-order propagation: the derivative of exp(x) is exp(x).
        tags["lambada/perplexity_stderr"] = per_word * error
    if fitted.truncated:
        tags["lambada/truncated_rows"] = float(fitted.truncated)
    tags |= left_out_tags("lambada", fitted.left_out)
    table = ItemTable(
        item_ids([[item.context, item.endings] for item in kept.values()]),
        np.zeros(len(kept), np.int64),
        nats[:, None],
        np.ones((len(kept), 1), np.int64),
        {"acc": np.where(right, 0, _NOT_PREDICTED)},
    )
    return TaskResult(tags, {"lambada": table})


def lambada_item(where: str, row: Any) -> Item:
    """A passage as an item whose only ending is the last word."""
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"]:
        raise ValueError(f"{where} must have a text; give the test split as published")
    context, _, word = row["text"].rpartition(" ")
    return Item(context, (word,), 0, harness=True)


_REVISION = "900124bf3b8235c6daf21033af9948b3f07346c4"
_HUB = HubTable("EleutherAI/lambada_openai", "default", "test", _REVISION)
LAMBADA = ItemSource("lambada", _HUB, lambada_item)
