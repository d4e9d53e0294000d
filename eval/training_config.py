"""Validation, tasks and samples during training: their settings."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from eval.sampling.next_token import MAX_TEMPERATURE
from eval.subject import EvalOptions, named_file
from eval.tasks.registry import check_tasks
from model.precision import Precision
from storage.option_values import AtMost, check_at_least
from storage.options.usual import Usual

_VAL_TOKENS = AtMost(2_097_152)
_MOST_SAMPLED = 100_000  # tokens of one sample: all ranks wait for it


@dataclass(frozen=True)
class EvalConfig:
    """Validation and tasks during training."""

    every: Usual[int] = AtMost(250)
    """Steps between validations. They give loss and bits per byte. 0 disables them.
    A preset's number, and the default, is smaller in a short run, which has at least five."""
    val_tokens: int | Literal["auto"] = _VAL_TOKENS
    """Number of tokens of each validation; only whole windows are used. auto, and the default: the
    preset's number, or all there are if that is less."""
    tasks_every: int = 500
    """Steps between runs of the tasks. 0 disables them."""
    tasks: Usual[tuple[str, ...]] = ("hellaswag",)
    """Names of the tasks. They are in eval/tasks/registry.py."""
    items: int | None = None
    """Use only the first N items of each task. Default: all."""
    hellaswag_file: Path | None = None
    """Local .jsonl[.xz|.gz] file of HellaSwag items. Default: from the Hugging Face Hub."""
    task_file: tuple[str, ...] = ()
    """Local files for other tasks, each as NAME=PATH. Default: from the Hugging Face Hub."""

    def __post_init__(self) -> None:
        check_at_least("eval.every", self.every, 0)
        check_at_least("eval.tasks_every", self.tasks_every, 0)
        if self.val_tokens != "auto":
            check_at_least("eval.val_tokens", self.val_tokens, 1)
        if self.items is not None:
            check_at_least("eval.items", self.items, 1)
        check_tasks(self.tasks)

    @property
    def validated_tokens(self) -> int:
        """`val_tokens` as a number; an AtMost if less will do."""
        return _VAL_TOKENS if self.val_tokens == "auto" else self.val_tokens

    def options(self, micro_batch: int, dtype: Precision) -> EvalOptions:
        """How tasks are run during training. Raises: ValueError if one of the files is missing."""
        return EvalOptions(
            hellaswag_file=self.hellaswag_file,
            task_file=self.task_file,
            items=self.items,
            val_tokens=self.validated_tokens,
            micro_batch=micro_batch,
            dtype=dtype,
        )

    def with_absolute_paths(self) -> Self:
        """The same with absolute paths, since a watcher may run in another folder."""
        # Symbolic links are kept: in the Hub's cache only the link's name has the file's suffix.
        named = map(named_file, self.task_file)
        files = tuple(f"{name}={path.absolute()}" for name, path in named)
        own = self.hellaswag_file
        return replace(self, hellaswag_file=own and own.absolute(), task_file=files)


@dataclass(frozen=True)
class SampleConfig:
    """Text samples during training."""

    every: Usual[int] = AtMost(500)
    """Steps between samples. 0 disables them. A preset's number is smaller in a short run."""
    prompts: tuple[str, ...] = ("Hello, I'm a language model,", "")
    """Prompts to continue. An empty prompt starts a new document."""
    max_tokens: int = 64
    """Largest number of tokens to sample for each prompt."""
    temperature: float = 1.0
    """Temperature: divides the logits. 0 always takes the most likely token."""
    top_k: int = 50
    """Sample only from the N most likely tokens. 0 disables it."""

    def __post_init__(self) -> None:
        check_at_least("sample.every", self.every, 0)
        check_at_least("sample.max_tokens", self.max_tokens, 1, _MOST_SAMPLED)
        check_at_least("sample.temperature", self.temperature, 0, int(MAX_TEMPERATURE))
        check_at_least("sample.top_k", self.top_k, 0)
