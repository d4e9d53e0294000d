"""The model under evaluation (`Subject`) and the options of all tasks (`EvalOptions`).

`load_subject` builds a Subject from a checkpoint. The trainer builds one from its own
network and tokenizer.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_prep.dataset.manifest import MANIFEST_NAME
from data_prep.order.training_data import open_training_data, recorded_places
from data_prep.order.weights import folders_and_weights
from data_prep.tokenizer import Tokenizer, load_tokenizer
from model.averaging.record import average_record
from model.checkpoint import load_model
from model.checkpoint_source import find_checkpoint
from model.gpt import GPT
from model.precision import Precision
from parallel.collectives import on_main, together
from parallel.ranks import Ranks, cache_folder
from storage.atomic import read_json
from storage.checkpoint_folder import STATE_FILE
from storage.option_values import AtMost, own_path
from storage.ownership.latest import follow_latest
from storage.records.json_fields import check_fields

REFERENCE_VAL_TOKENS = 2_097_152  # validation tokens of the reference run
VAL_MICRO_BATCH = 8
_CPU_BATCH_TOKENS = 2_048  # larger batches do not fit a core's cache
_CUDA_BATCH_TOKENS = 16_384  # the endings in such a batch have about 1.3 GB of float32 logits
EXAMPLES_SUFFIX = ".train"  # after a task's name: the file of its few-shot examples

_MASK = "mask_documents"
# Of state.json. A checkpoint that was imported has none; an average has them in its own record.
_STATE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "data": (str, list, type(None)),
    "data_fingerprint": (str, type(None)),
    "val_tokens": (int, type(None)),
    _MASK: (bool, type(None)),
}
log = logging.getLogger(__name__)


class DataUnavailable(ValueError):
    """A task's data cannot be read or downloaded. Such a task is skipped, the others still run."""


@dataclass(frozen=True)
class Subject:
    """A model to evaluate, not compiled and not wrapped by DDP, on its rank's device."""

    # Evaluation has many input shapes. Under torch.compile build-nanogpt's HellaSwag and sampling
    # failed: https://github.com/karpathy/build-nanogpt/issues/56 and four more reports.

    model: GPT
    tokenizer: Tokenizer
    ranks: Ranks
    mask_documents: bool = False
    """Whether validation reads each document of a window alone, as the model was trained."""

    @property
    def separator(self) -> int | None:
        """The id that opens each document that validation reads alone; None if it reads on."""
        return self.tokenizer.end_of_text if self.mask_documents else None

    def __post_init__(self) -> None:
        if self.tokenizer.n_vocab != self.model.config.vocab_size:
            raise ValueError(
                f"tokenizer {self.tokenizer.name} has {self.tokenizer.n_vocab} ids, the model has "
                f"vocab_size={self.model.config.vocab_size}; use the tokenizer it was trained with"
            )


@dataclass(frozen=True)
class EvalOptions:
    """How tasks run. Files, `items`, `few_shot` and `val_tokens` change what is measured."""

    data: tuple[Path, ...] = ()
    """Data set folder for val_loss, or a mixture as FOLDER:WEIGHT of each; default: the data that
    the checkpoint was trained on."""
    hellaswag_file: Path | None = None
    """HellaSwag items as .jsonl, .jsonl.xz or .jsonl.gz; default: the Hugging Face Hub's."""
    task_file: tuple[str, ...] = ()
    """Local files to use instead of the Hub, as NAME=PATH (.parquet, .jsonl, .jsonl.xz, .jsonl.gz).
    NAME.train=PATH is the file from which --few-shot draws its examples."""
    few_shot: int = 0
    """Solved examples before each question, the same ones as lm-evaluation-harness draws.
    Applies to tasks with a training split (to hellaswag in harness style only).
    Changes the tags: piqa/acc becomes piqa_5shot/acc."""
    items: int | None = None
    """Use only the first N items of each task that has items; default: all."""
    val_tokens: int | None = None
    """Validation tokens, rounded down to whole windows; default: as in training, or 2,097,152,
    or all there are if that is less."""
    micro_batch: int | None = None
    """Validation windows in one forward pass; default: 8, or with --watch the run's micro-batch."""
    tokens_per_batch: int | None = None
    """Tokens in one multiple-choice batch; default: 2,048 on the CPU, 16,384 on CUDA."""
    dtype: Precision = "auto"
    """Precision of matrix products; auto: bfloat16 on CUDA, float32 on the CPU."""

    def __post_init__(self) -> None:
        for name in ("items", "val_tokens", "micro_batch", "tokens_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} is too small; use 1 or more")
        if self.few_shot < 0:
            raise ValueError(f"few_shot={self.few_shot} is negative; use 0 or more")
        for name, path in (self.files | self._named_files()).items():
            if not path.is_file():
                raise ValueError(
                    f"{path}, the file for {name}, does not exist; give a .jsonl, .jsonl.xz, "
                    ".jsonl.gz or .parquet file, or omit it to use the Hub (a watched run names "
                    "its files in config.json; --task-file NAME=PATH replaces one of them)"
                )

    @property
    def files(self) -> dict[str, Path]:
        """Local files with a task's items, by the task's name."""
        named = self._named_files()
        files = {name: path for name, path in named.items() if not name.endswith(EXAMPLES_SUFFIX)}
        if self.hellaswag_file is not None:
            files["hellaswag"] = self.hellaswag_file
        return files

    @property
    def example_files(self) -> dict[str, Path]:
        """Local files with a task's few-shot examples, by the task's name."""
        named = self._named_files().items()
        return {
            name.removesuffix(EXAMPLES_SUFFIX): p
            for name, p in named
            if name.endswith(EXAMPLES_SUFFIX)
        }

    def _named_files(self) -> dict[str, Path]:
        return dict(map(named_file, self.task_file))

    def batch_tokens_on(self, device: torch.device) -> int:
        """Tokens in one multiple-choice batch on this device."""
        default = _CUDA_BATCH_TOKENS if device.type == "cuda" else _CPU_BATCH_TOKENS
        return self.tokens_per_batch or default


def named_file(text: str) -> tuple[str, Path]:
    """Name and path of a local file given as NAME=PATH. Raises: ValueError if it is not that."""
    name, _, path = text.partition("=")
    if not (name and path):
        missing = "file" if name else "task"
        raise ValueError(f"task_file={text} names no {missing}; write NAME=PATH")
    try:
        return name, own_path(path)
    except ValueError as error:
        raise ValueError(f"task_file={text} {error}") from error


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Inference and evaluation mode inside the block; afterwards the model's mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def find_on_ranks(named: Path, ranks: Ranks) -> Path:
    """`find_checkpoint` as rank 0 decides; a model is imported once on each machine.

    Raises: ValueError on every rank if there is none, or not the same one on each machine.
    """
    found = on_main(lambda: find_checkpoint(named, cache_folder()))

    def find_here() -> None:
        if ranks.local_rank == 0 and not found.is_dir():
            here = find_checkpoint(named, cache_folder())
            if here != found:
                raise ValueError(
                    f"{named} is {found} on the first machine and {here} on this one; give a "
                    "checkpoint folder that all machines have"
                )

    together(find_here)
    return found


def load_subject(named: Path, ranks: Ranks) -> Subject:
    """The model and tokenizer of what a person names, on this rank's device; verified first.

    Raises: ValueError on every rank if the checkpoint cannot be loaded on one of them.
    """
    return subject_of(find_on_ranks(named, ranks), ranks)


def subject_of(checkpoint: Path, ranks: Ranks) -> Subject:
    """The model and tokenizer in the folder of a verified checkpoint. Raises: as above."""

    def load() -> Subject:
        tokenizer = load_tokenizer(checkpoint / "tokenizer")
        masked = bool(_of_training(checkpoint).get(_MASK))
        return Subject(load_model(checkpoint, ranks.device), tokenizer, ranks, masked)

    return together(load)


def _of_training(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its training; empty if it was imported."""
    path = checkpoint / STATE_FILE
    found = read_json(path) if path.is_file() else average_record(checkpoint)
    return check_fields(path, found, _STATE_FIELDS, "use another checkpoint")


def with_checkpoint_defaults(checkpoint: Path, options: EvalOptions) -> EvalOptions:
    """`options`, where data set and validation tokens, if not given, are those of the training."""
    folder = follow_latest(checkpoint)
    state = _of_training(folder)
    data = options.data
    if not data and state.get("data"):
        data = recorded_places(state["data"])
        folders = [place.folder for place in folders_and_weights(data)]
        known = all((folder / MANIFEST_NAME).is_file() for folder in folders)
        if known and open_training_data(data).fingerprint != state.get("data_fingerprint"):
            text = " ".join(map(str, data))
            log.warning("%s has changed since the training run: its loss will differ", text)
    recorded = state.get("val_tokens")
    tokens = options.val_tokens or (recorded and AtMost(recorded))
    return replace(options, data=data, val_tokens=tokens)
