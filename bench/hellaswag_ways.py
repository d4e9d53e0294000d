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

from eval.multiple_choice import Item, score_items
from eval.subject import EvalOptions, Subject
from model.checkpoint import save_model
from model.huggingface import ExportOptions, export_model
from model.precision import autocast, choose_dtype
from storage.run_folder import write_manifest

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


def one_at_a_time(subject: Subject, items: Sequence[Item], dtype: torch.dtype) -> np.ndarray:
    """Nats of every ending, by a forward pass of four padded rows an item. Shape (items, 4)."""
    device, encode = subject.ranks.device, subject.tokenizer.encode
    found = []
    for item in items:
        context = encode(item.context)
        endings = [encode(" " + text) for text in item.endings]
        longest = max(map(len, endings))
        ids = torch.zeros(len(endings), len(context) + longest, dtype=torch.long)
        scored = torch.zeros_like(ids)
        for row, ending in enumerate(endings):
            length = len(context) + len(ending)
            ids[row, :length] = torch.tensor(context + ending)
            scored[row, len(context) : length] = 1
        ids, scored = ids.to(device), scored.to(device)
        with autocast(dtype, device):
            logits = subject.model.live_logits(subject.model.hidden(ids))[:, :-1]
        targets = ids[:, 1:]
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
        export_model(ExportOptions(checkpoint, exported))
        device = str(subject.ranks.device)
        model = HFLM(str(exported), device=device, dtype="float32", batch_size=batch)

        def score(items: Sequence[Item]) -> np.ndarray:
            pairs = [(item.context, f" {ending}") for item in items for ending in item.endings]
            asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
            found = model.loglikelihood(asked, disable_tqdm=True)
            return -np.array([nats for nats, _ in found]).reshape(len(items), -1)

        yield Way("lm_eval", HARNESS, score, "trees_harness")


def our_ways(subject: Subject) -> list[Way]:
    """Ours in both styles, and the stand-in. All in float32."""
    options = EvalOptions(dtype="float32")
    dtype = choose_dtype(options.dtype, subject.ranks.device)

    def trees(items: Sequence[Item]) -> np.ndarray:
        return score_items(subject, items, options).sums

    def one_item(items: Sequence[Item]) -> np.ndarray:
        return one_at_a_time(subject, items, dtype)

    return [
        Way("trees", COMPLETION, trees),
        Way("one_item", COMPLETION, one_item, "trees"),
        Way("trees_harness", HARNESS, trees),
    ]
