"""The configuration of a run, composed once from the parts that own their fields."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from data_prep.order.skipped_windows import Skips, parse_skips
from eval.tasks.registry import check_tasks
from model.config import GPTConfig
from parallel.stop_signals import moment
from train.guards.spikes import GuardConfig
from train.optimizers.adamw import AdamWConfig
from train.profile_steps import parse_span
from train.schedule import ScheduleConfig


def _at_least(name: str, value: float, smallest: int) -> None:
    if not smallest <= value < float("inf"):
        raise ValueError(f"{name}={value} is out of range; use {smallest} or more")


@dataclass(frozen=True)
class EvalConfig:
    """What is measured during training, and how often. Every 0 steps is never."""

    every: int = 250
    """Steps between validations (loss and bits per byte)."""
    val_tokens: int = 2_097_152
    """Validation tokens of each validation, in whole windows."""
    tasks_every: int = 500
    """Steps between runs of the tasks below."""
    tasks: tuple[str, ...] = ("hellaswag",)
    """Tasks by name, see eval/tasks/registry.py."""
    items: int | None = None
    """Only the first so many items of each task; None is all."""
    hellaswag_file: Path | None = None
    """A local .jsonl[.xz|.gz] of HellaSwag items; None asks the Hugging Face Hub."""
    task_file: tuple[str, ...] = ()
    """Local files of other tasks instead of the Hub's, as NAME=PATH."""

    def __post_init__(self) -> None:
        _at_least("eval.every", self.every, 0)
        _at_least("eval.tasks_every", self.tasks_every, 0)
        _at_least("eval.val_tokens", self.val_tokens, 1)
        if self.items is not None:
            _at_least("eval.items", self.items, 1)
        check_tasks(self.tasks)

    def with_whole_paths(self) -> Self:
        """The same, with files by absolute paths: a watcher may read them from another folder."""
        # Links stay: the Hub's cache has its files' kinds in the names of links alone.
        named = (text.partition("=") for text in self.task_file)
        files = tuple(f"{name}={Path(path).absolute()}" for name, _, path in named)
        own = self.hellaswag_file
        return replace(self, hellaswag_file=own and own.absolute(), task_file=files)


@dataclass(frozen=True)
class SampleConfig:
    """Text drawn from the model during training. Every 0 steps is never."""

    every: int = 500
    """Steps between samples."""
    prompts: tuple[str, ...] = ("Hello, I'm a language model,", "")
    """Beginnings to continue; an empty one begins a new document."""
    max_tokens: int = 64
    """Tokens drawn for each prompt."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 50
    """Only the so many likeliest tokens are drawn; 0 is all."""

    def __post_init__(self) -> None:
        _at_least("sample.every", self.every, 0)
        _at_least("sample.max_tokens", self.max_tokens, 1)
        _at_least("sample.temperature", self.temperature, 0)
        _at_least("sample.top_k", self.top_k, 0)


@dataclass(frozen=True)
class SaveConfig:
    """When checkpoints are written; one more is written at the end and at a stop."""

    every: int = 0
    """Steps between checkpoints; 0 leaves it to the clock."""
    every_minutes: float = 2.0
    """Minutes between checkpoints; 0 leaves it to the steps."""
    keep: int = 2
    """Newest checkpoints kept; only sound ones count."""
    keep_every: int = 0
    """Checkpoints of every so many steps are written and kept for good; 0 is none."""
    keep_best: int = 1
    """Checkpoints with the smallest validation loss kept; one is written when it is measured."""

    def __post_init__(self) -> None:
        _at_least("save.every", self.every, 0)
        _at_least("save.every_minutes", self.every_minutes, 0)
        _at_least("save.keep", self.keep, 1)
        _at_least("save.keep_every", self.keep_every, 0)
        _at_least("save.keep_best", self.keep_best, 0)

    def most_kept(self, steps: int) -> int:
        """Checkpoints that lie on the disk at the end of so many steps, at most."""
        return self.keep + self.keep_best + (steps // self.keep_every if self.keep_every else 0)


@dataclass(frozen=True)
class Config:
    """A whole run; the defaults are the reference run, GPT-2 124M on FineWeb-Edu."""

    data: Path = Path("data/fineweb_edu")
    """Data set folder made by one of the data_prep scripts."""
    stage: Path | None = None
    """Folder on each machine's own disk to copy the shards to first (within 30 minutes)."""
    out: Path = Path("runs/gpt2")
    """Run folder; a run that lies there with the same configuration is continued."""
    init: Path | None = None
    """Checkpoint whose weights the run starts from (fine-tuning); None draws fresh ones."""
    seed: int = 1337
    """Decides fresh weights, the order of documents and samples."""
    steps: int | None = None
    """Optimizer steps in all; None is one epoch of the present batch_tokens."""
    batch_tokens: int = 524_288
    """Tokens of one optimizer step over all ranks; the number of GPUs never changes it."""
    micro_batch: int | Literal["auto"] = "auto"
    """Windows of one forward pass on one rank; auto: as many as fit, and are fast on the CPU."""
    context_length: int | None = None
    """Tokens of one window (T); None is the model's. The model is built for just this length."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of matrix products; auto is bfloat16 (autocast) on CUDA and float32 on the CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of network and loss; auto is on for CUDA."""
    fused_loss: Literal["auto", "on", "off"] = "auto"
    """Head and loss in one operator that overwrites logits by their gradient; auto: on the CPU."""
    residual: Literal["float32", "bfloat16"] = "float32"
    """Type of the residual stream; bfloat16 only with that dtype."""
    gradient_compression: Literal["none", "bfloat16"] = "none"
    """Type in which ranks exchange gradients; bfloat16 halves the bytes, and rounds."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is one."""
    deterministic: bool = False
    """The same bits each time on CUDA too, at some cost in speed; the CPU always gives them."""
    data_check: Literal["full", "cached", "size"] = "cached"
    """Check of the shards before step 1: all digests, those of changed files, or sizes only."""
    skip_windows: tuple[str, ...] = ()
    """Ranges a:b of training windows to leave out, such as those around a loss spike."""
    rehearsal: bool = True
    """Do everything once, small, before the first step of a run."""
    allow: tuple[str, ...] = ()
    """Settings that may differ from those of the run that is continued, such as optimizer.lr."""
    stop_at: str | None = None
    """Time to be done by, saved: Unix seconds or ISO 8601. The rest is left to another start."""
    profile: str | None = None
    """Steps a:b whose profiler trace rank 0 writes to the run folder, such as 20:24."""
    hang_seconds: int = 300
    """Once a step is done, ranks wait so long for a silent one; then they save and end."""
    model: GPTConfig = GPTConfig()
    """Shape of the network."""
    optimizer: AdamWConfig = AdamWConfig()
    """Optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning-rate schedule."""
    eval: EvalConfig = EvalConfig()
    """Validation and tasks."""
    sample: SampleConfig = SampleConfig()
    """Samples."""
    save: SaveConfig = SaveConfig()
    """Checkpoints."""
    guard: GuardConfig = GuardConfig()
    """Spikes, and ranks that drift apart."""

    def __post_init__(self) -> None:
        _at_least("seed", self.seed, 0)
        _at_least("batch_tokens", self.batch_tokens, 1)
        _at_least("hang_seconds", self.hang_seconds, 1)
        if self.stop_at is not None:
            moment(self.stop_at)
        if self.profile is not None:
            parse_span(self.profile)
        parse_skips(self.skip_windows)
        for name in ("steps", "micro_batch", "context_length"):
            if getattr(self, name) not in (None, "auto"):
                _at_least(name, getattr(self, name), 1)
        if self.steps is not None:
            self.check_warmup(self.steps)

    @property
    def skips(self) -> Skips:
        """First and stop of each range of windows to leave out."""
        return parse_skips(self.skip_windows)

    def check_warmup(self, steps: int) -> None:
        """Raises: ValueError if the warm-up would take the whole run of `steps`."""
        warmup = self.schedule.warmup_steps
        if warmup >= steps > 0 and warmup > 0:
            raise ValueError(
                f"schedule.warmup_steps={warmup} is not less than steps={steps}; "
                f"try --schedule.warmup-steps {steps // 10}"
            )

    @property
    def network(self) -> GPTConfig:
        """`model` at this run's context length; the data set's tokenizer has the last word."""
        if self.context_length is None:
            return self.model
        return replace(self.model, context_length=self.context_length)

    def network_for(self, n_vocab: int) -> GPTConfig:
        """`network` for a tokenizer of `n_vocab` ids.

        Raises: ValueError if a vocabulary was asked for that is not this one.
        """
        if self.model.vocab_size not in (GPTConfig.vocab_size, n_vocab):
            raise ValueError(
                f"model.vocab_size={self.model.vocab_size} but the tokenizer of {self.data} has "
                f"{n_vocab} ids; give --model.vocab-size {n_vocab}, or leave it out"
            )
        return replace(self.network, vocab_size=n_vocab)

    def as_json(self, network: GPTConfig, micro_batch: int) -> dict[str, Any]:
        """The configuration as plain JSON values, with the network and micro-batch of the run."""
        chosen = {"context_length": network.context_length, "micro_batch": micro_batch}
        own = replace(self, model=network, eval=self.eval.with_whole_paths(), **chosen)
        return _plain(asdict(own))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
