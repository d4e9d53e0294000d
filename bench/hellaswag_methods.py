"""The methods of scoring HellaSwag that bench/hellaswag_speed.py compares.

In: items. Out: the summed loss of every ending in nats.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from eval.scoring.multiple_choice import Item, score_items
from eval.subject import EvalOptions, Subject
from model.checkpoint import save_model
from model.hf_format.convert import export_model
from storage.checkpoint_folder import write_manifest

COMPLETION, HARNESS = "completion", "harness"  # the two styles of an item's text


@dataclass(frozen=True)
class Method:
    """One method of scoring."""

    name: str
    style: str
    score: Callable[[Sequence[Item]], np.ndarray]
    """Returns the nats of every ending. Shape (items, 4)."""
    against: str | None = None
    """The name of the method of ours that this one is compared with; None for ours."""


def _score_item_by_item(subject: Subject, items: Sequence[Item]) -> np.ndarray:
    """Nats of every ending, with one forward pass of four padded rows for each item.

    A row that is too long for the model loses its beginning, as in lm-evaluation-harness.
    Shape: (items, 4).
    """
    device, encode = subject.ranks.device, subject.tokenizer.encode
    longest = subject.model.config.context_length
    found = []
    for item in items:
        context = encode(item.context)
        endings = [encode(" " + text) for text in item.endings]
        rows = [(context + ending)[-(longest + 1) :] for ending in endings]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        scored = torch.zeros_like(ids)
        for number, (row, ending) in enumerate(zip(rows, endings, strict=True)):
            ids[number, : len(row)] = torch.tensor(row)
            scored[number, len(row) - len(ending) : len(row)] = 1
        ids, scored = ids.to(device), scored.to(device)
        targets = ids[:, 1:]
        states = subject.model.hidden(ids[:, :longest])
        logits = subject.model.masked_logits(states)[:, : targets.size(1)]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        found.append((losses.view_as(targets) * scored[:, 1:]).sum(1).cpu().numpy())
    return np.array(found)


@contextmanager
def harness_model(subject: Subject, checkpoint: Path | None, batch: int) -> Iterator[Method]:
    """lm-evaluation-harness on the exported model, in float32."""
    # An optional dependency, which only this method needs.
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        if checkpoint is None:
            checkpoint = Path(folder) / "checkpoint"
            checkpoint.mkdir()
            save_model(checkpoint, subject.model)
            subject.tokenizer.save(checkpoint / "tokenizer")
            write_manifest(checkpoint)
        export_model(checkpoint, exported)
        device = str(subject.ranks.device)
        model = HFLM(str(exported), device=device, dtype="float32", batch_size=batch)

        def score(items: Sequence[Item]) -> np.ndarray:
            pairs = [(item.context, f" {ending}") for item in items for ending in item.endings]
            asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
            found = model.loglikelihood(asked, disable_tqdm=True)
            return -np.array([nats for nats, _ in found]).reshape(len(items), -1)

        yield Method("lm_eval", HARNESS, score, "trees_harness")


def our_methods(subject: Subject) -> list[Method]:
    """The project's own scoring, in both styles, in float32."""
    options = EvalOptions(dtype="float32")

    def score(items: Sequence[Item]) -> np.ndarray:
        return score_items(subject, items, options).sums

    return [Method("trees", COMPLETION, score), Method("trees_harness", HARNESS, score)]


def item_by_item_method(subject: Subject) -> Method:
    """The substitute for build-nanogpt's loop, in float32."""
    return Method(
        "one_item", COMPLETION, lambda items: _score_item_by_item(subject, items), "trees"
    )
