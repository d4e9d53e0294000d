"""What is evaluated and how: the model with its tokenizer and ranks, and the options of all tasks.

A checkpoint folder goes in, a Subject comes out; the trainer builds its own from what it holds.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data_prep.dataset.manifest import read_manifest
from data_prep.tokenizer import Tokenizer, load_tokenizer
from model.checkpoint import load_model
from model.gpt import GPT
from model.precision import Precision
from parallel.collectives import raise_on_all_ranks
from parallel.ranks import Ranks
from storage.atomic import read_json
from storage.checkpoint_folder import verify_checkpoint

REFERENCE_VAL_TOKENS = 2_097_152  # the reference run's
VAL_MICRO_BATCH = 8
CPU_BATCH_TOKENS = 2_048  # larger batches fall out of a core's cache
EXAMPLES = ".train"  # after a task's name: the file of its few-shot examples
CUDA_BATCH_TOKENS = 16_384  # float32 logits of the endings in such a batch are about 1.3 GB

log = logging.getLogger(__name__)


class DataUnavailable(ValueError):
    """A task's data cannot be had on this machine: the one failure that others go on without."""


@dataclass(frozen=True)
class Subject:
    """A model under evaluation: plain (neither compiled nor wrapped), on its rank's device."""

    model: GPT
    tokenizer: Tokenizer
    ranks: Ranks

    def __post_init__(self) -> None:
        if self.tokenizer.n_vocab != self.model.config.vocab_size:
            raise ValueError(
                f"tokenizer {self.tokenizer.name} has {self.tokenizer.n_vocab} ids, the model has "
                f"vocab_size={self.model.config.vocab_size}; use the tokenizer it was trained with"
            )


@dataclass(frozen=True)
class EvalOptions:
    """How tasks are run; files, `items`, `few_shot` and `val_tokens` change what they measure."""

    data: Path | None = None
    """Data set folder for val_loss; default: the one that the checkpoint was trained on."""
    hellaswag_file: Path | None = None
    """HellaSwag items as .jsonl, .jsonl.xz or .jsonl.gz; default: the Hugging Face Hub's."""
    task_file: tuple[str, ...] = ()
    """Local files instead of the Hub's, as NAME=PATH: .parquet, .jsonl, .jsonl.xz or .jsonl.gz.
    NAME.train=PATH is where the examples of --few-shot are drawn from."""
    few_shot: int = 0
    """Solved examples before each question of piqa, arc_easy, openbookqa and hellaswag (harness
    style only), those that lm-evaluation-harness draws; tags say so: piqa_5shot/acc."""
    items: int | None = None
    """Only the first so many items of each task that has items; default: all."""
    val_tokens: int | None = None
    """Validation tokens, in whole windows; default: as in training, or the reference run's."""
    micro_batch: int | None = None
    """Validation windows in one forward pass; default: 8, or the run's where one is watched."""
    tokens_per_batch: int | None = None
    """Tokens in one multiple-choice batch; default: 2,048 on the CPU, 16,384 on CUDA."""
    dtype: Precision = "auto"
    """Arithmetic of matrix products; auto is bfloat16 on CUDA and float32 on the CPU."""

    def __post_init__(self) -> None:
        for name in ("items", "val_tokens", "micro_batch", "tokens_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} is not a number of {name}; use 1 or more")
        if self.few_shot < 0:
            raise ValueError(f"few_shot={self.few_shot} is no number of examples; use 0 or more")
        for text in self.task_file:
            if "=" not in text:
                raise ValueError(f"task_file={text} names no task; write NAME=PATH")
        for name, path in (self.files | self._named_files()).items():
            if not path.is_file():
                raise ValueError(
                    f"{path}, the file for {name}, is not there; give a .jsonl, .jsonl.xz, "
                    ".jsonl.gz or .parquet file, or leave it out to ask the Hub (a run's own are "
                    "in its config.json; for a watch --task-file NAME=PATH names another)"
                )

    @property
    def files(self) -> dict[str, Path]:
        """Local files by the name of the task whose items they hold."""
        named = self._named_files()
        files = {name: path for name, path in named.items() if not name.endswith(EXAMPLES)}
        if self.hellaswag_file is not None:
            files["hellaswag"] = self.hellaswag_file
        return files

    @property
    def example_files(self) -> dict[str, Path]:
        """Local files by the name of the task whose few-shot examples they hold."""
        named = self._named_files().items()
        return {name.removesuffix(EXAMPLES): p for name, p in named if name.endswith(EXAMPLES)}

    def _named_files(self) -> dict[str, Path]:
        pairs = (text.partition("=") for text in self.task_file)
        return {name: Path(path) for name, _, path in pairs}

    def batch_tokens_on(self, device: torch.device) -> int:
        """Tokens in one multiple-choice batch on `device`."""
        default = CUDA_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS
        return self.tokens_per_batch or default


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Inference and evaluation mode inside the block; the model's own mode is put back after."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def load_subject(checkpoint: Path, ranks: Ranks) -> Subject:
    """The model and tokenizer of a checkpoint, every file of it verified, on this rank's device.

    Raises: ValueError on every rank if one of them cannot use the checkpoint.
    """
    subject, error = None, None
    try:
        if ranks.is_main:
            verify_checkpoint(checkpoint)
        tokenizer = load_tokenizer(checkpoint / "tokenizer")
        subject = Subject(load_model(checkpoint, ranks.device), tokenizer, ranks)
    except (ValueError, OSError) as found:
        error = found
    raise_on_all_ranks(error)
    assert subject is not None
    return subject


def with_checkpoint_defaults(checkpoint: Path, options: EvalOptions) -> EvalOptions:
    """`options` with what was left open filled in from what the checkpoint says of its run."""
    path = checkpoint / "state.json"
    state = read_json(path) if path.is_file() else {}
    data = options.data
    if data is None and state.get("data"):
        data = Path(state["data"])
        known = (data / "manifest.json").is_file()
        if known and read_manifest(data).fingerprint != state.get("data_fingerprint"):
            log.warning("%s is no longer the data set of the training run: its loss differs", data)
    return replace(options, data=data, val_tokens=options.val_tokens or state.get("val_tokens"))
