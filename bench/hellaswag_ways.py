"""The ways of scoring HellaSwag that bench/hellaswag_speed.py compares: ours and those of others.

Items go in, the nats of every ending come out.
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

COMPLETION, HARNESS = "completion", "harness"  # styles, by which items are read


@dataclass(frozen=True)
class Way:
    """One way of scoring."""

    name: str
    style: str
    score: Callable[[Sequence[Item]], np.ndarray]
    """Nats of every ending. Shape (items, 4)."""
    against: str | None = None
    """The name of our way, if this is somebody else's."""


def download_lock(subject: Subject, items: Sequence[Item]) -> np.ndarray:
    """Nats of every ending, by a forward pass of four padded rows an item. Shape (items, 4).

    Rows that are too long for the model lose their beginning, by lm-evaluation-harness's rule.
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
def harness_model(subject: Subject, checkpoint: Path | None, batch: int) -> Iterator[Way]:
    """lm-evaluation-harness on the model as exported, in float32."""
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

        yield Way("lm_eval", HARNESS, score, "trees_harness")


def our_ways(subject: Subject) -> list[Way]:
    """Ours in both styles, in float32."""
    options = EvalOptions(dtype="float32")

    def trees(items: Sequence[Item]) -> np.ndarray:
        return score_items(subject, items, options).sums

    return [Way("trees", COMPLETION, trees), Way("trees_harness", HARNESS, trees)]


def one_item_way(subject: Subject) -> Way:
    """The stand-in for build-nanogpt's loop, in float32."""
    return Way("one_item", COMPLETION, lambda items: download_lock(subject, items), "trees")
