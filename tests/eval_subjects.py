"""Tiny models to evaluate, and checkpoint folders with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.dataset.shards import DataSet
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from eval.sampling.decoding import sample_batches, split_into_batches, start_samples
from eval.sampling.next_token import GenerateOptions
from eval.subject import Subject
from model.checkpoint import save_model
from model.config import GPTConfig
from model.gpt import GPT
from parallel.ranks import Ranks
from storage.atomic import write_json
from storage.checkpoint_folder import write_manifest

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
# A modern shape whose weights, as tiny_model makes them, are not zero in any matrix.
TINY_MODERN = {
    "norm": "rmsnorm", "norm_weight": False, "embedding_norm": True, "qk_norm": True,
    "mlp": "relu2", "position": "rope", "bias": False, "tied": False, "logit_softcap": 15.0,
}  # fmt: skip


def tiny_model(context_length: int = 48, seed: int = 1, **changes) -> GPT:
    """A model with larger weights than fresh ones, so that the losses of endings differ."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": context_length}
    model = GPT(GPTConfig(**{**shape, **changes}))
    model.initialise(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


def tiny_subject(**changes) -> Subject:
    """A tiny model with GPT-2's tokenizer, on one CPU rank."""
    return Subject(tiny_model(**changes), gpt2_tokenizer(), ALONE)


def tiny_checkpoint(
    folder: Path, data: DataSet | None = None, shape: dict[str, Any] | None = None, **state
) -> Path:
    """A checkpoint folder as the trainer writes it, without the optimizer."""
    folder.mkdir()
    save_model(folder, tiny_model(**(shape or {})))
    gpt2_tokenizer().save(folder / "tokenizer")
    if data is not None:
        state |= {"data": str(data.folder), "data_fingerprint": data.fingerprint}
    write_json(folder / "state.json", state)
    write_manifest(folder)
    return folder


def limit_memory(monkeypatch: pytest.MonkeyPatch, model: GPT, tokens: int) -> list[int]:
    """Make forward passes of more than `tokens` tokens run out of memory.

    Returns a list to which every pass adds its number of tokens.
    """
    passes = []

    def hidden(ids, *arguments, plain=model.hidden, **named):
        passes.append(ids.numel())
        if ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(ids, *arguments, **named)

    monkeypatch.setattr(model, "hidden", hidden)
    return passes


def generate(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], options: GenerateOptions
) -> list[str]:
    """The texts that continue the prompts: `options.samples` texts per prompt, in prompt order."""
    samples = start_samples(tokenizer, prompts, options)
    sample_batches(model, split_into_batches(samples, options), options)
    return [sample.to_sample().text for sample in samples]
