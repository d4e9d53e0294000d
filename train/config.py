"""The configuration of a run: every setting, its help text and its checks.

The text under a field is also its `--help`. Parts with their own file (network, optimizer,
schedule, guards) define their settings there. A configuration never changes once it is made.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data_prep.order.skipped_windows import Skips, parse_skips
from data_prep.order.weights import WeightChange, folders_and_weights, weight_changes
from eval.training_config import EvalConfig, SampleConfig
from model.config import GPTConfig
from parallel.stop_signals import parse_time
from storage.option_values import check_at_least
from storage.options.usual import Usual
from storage.records.json_values import as_json_value
from storage.retention import SaveConfig
from storage.writers.log_config import LogConfig
from train.guards.best_validation import check_stop_when_worse
from train.guards.spikes import GuardConfig
from train.optimizers.adamw import AdamWConfig
from train.optimizers.config import OptimizerConfig
from train.optimizers.registry import optimizer_name
from train.profile_steps import parse_span
from train.schedule import WARMUP_PART, ScheduleConfig, fitted_warmup

_LARGEST_SEED = 2**64 - 1
_LARGEST_BATCH = 2**32  # tokens; a rank holds its part of it in memory
_MOST_THREADS = 1024
_LONGEST_HANG = 86_400  # seconds; the interpreter's timer takes no more than some years


@dataclass(frozen=True)
class Config:
    """A whole run. The defaults are the reference run: GPT-2 124M on FineWeb-Edu."""

    data: Usual[tuple[Path, ...]] = (Path("data/fineweb_edu"),)
    """Data set folder, made in data_prep/; or a mixture: FOLDER:0.7 FOLDER:0.2 FOLDER:0.1."""
    data_weights_at: tuple[str, ...] = ()
    """Other weights of the mixture from a step on: STEP and a weight for each source, perhaps
    several times, as 20000 0.5 0.3 0.2."""
    data_max_epochs: float | None = None
    """Read no source of the mixture more often than this. Without --steps the run ends there."""
    stage: Path | None = None
    """Folder on each machine's own disk to copy the data set to first (at most 30 minutes)."""
    out: Usual[Path] = Path("runs/gpt2")
    """Run folder. If it contains a run with the same configuration, that run is resumed."""
    init: Usual[Path | None] = None
    """Weights to start from (fine-tuning). In the folder of a run or checkpoint; or a model of
    Hugging Face, as a folder or an id of its Hub. Default: random weights."""
    branch: Path | None = None
    """Checkpoint of another run that this run continues in a folder of its own: weights, optimizer,
    data position. Without a preset, that run's settings are the defaults."""
    seed: int = 1337
    """Random seed of the initial weights, the document order and the samples."""
    steps: Usual[int | None] = None
    """Optimizer steps of the run; None: one epoch. An epoch is all training tokens once."""
    # 0.5M, as for GPT-3's smallest model (table 2.1 of https://arxiv.org/abs/2005.14165).
    batch_tokens: Usual[int] = 524_288
    """Tokens of one optimizer step, over all ranks, whatever their number."""
    micro_batch: int | Literal["auto"] = "auto"
    """Windows of one forward pass on one rank. auto: as many as fit and make it faster."""
    context_length: Usual[int | None] = None
    """Tokens of one window (T). The model is built for it. None: --model.context-length."""
    # https://arxiv.org/abs/2407.21783 section 3.2; what it takes here: bench/LOG.md.
    mask_documents: bool = False
    """Attention stays within documents, where positions restart; validation too. Off, as GPT-2:
    Llama 3 found little effect except in very long windows, and on the CPU it takes longer."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number format of matrix products. auto: bfloat16 (autocast) on CUDA, float32 on the CPU."""
    compile: Literal["auto", "on", "max", "off"] = "auto"
    """Use torch.compile for network and loss. auto: on CUDA only. max: tune CUDA kernels longer."""
    fused_loss: Literal["auto", "on", "off"] = "auto"
    """Output layer and loss in one operator, which needs less memory. auto: on the CPU only."""
    recompute: Literal["off", "blocks"] = "off"
    """What the backward pass computes again instead of keeping it. blocks: all but the blocks'
    inputs, which needs far less memory; a quarter to a third more time (calculated)."""
    # bfloat16 in either of the next two moved the loss further than half the micro-batch does, so
    # both are off by default (bench/LOG.md, "loss curves of what is faster").
    residual: Literal["float32", "bfloat16"] = "float32"
    """Number format of the residual stream. bfloat16 is possible only with that dtype."""
    gradient_compression: Literal["none", "bfloat16"] = "none"
    """Number format in which ranks exchange gradients. bfloat16 halves the bytes but rounds."""
    reduction: Literal["ddp", "tree"] = "ddp"
    """How the gradients of micro-batches and ranks are summed. ddp: as torch does. tree: in an
    order that gives the same bits on 1, 2, 4 or 8 ranks, which takes more memory."""
    threads: int | Literal["auto"] = "auto"
    """Threads of each process on the CPU; they affect rounding. auto: what torch chooses. With
    --reduction tree a run that continues keeps its number."""
    device: Usual[Literal["auto", "cpu", "cuda"]] = "auto"
    """Device to train on. auto: CUDA if there is a GPU, else the CPU."""
    deterministic: bool = False
    """Give the same bits each time on CUDA too, which is slower: among others, attention is
    FlashAttention 2 and not cuDNN's, torch's choice on Hopper. The CPU always does."""
    data_check: Literal["full", "cached", "size"] = "cached"
    """Check of the data files before the first step. full: hash every file.
    cached: hash files whose size, times or inode changed. size: compare sizes only."""
    data_recheck_hours: float = 24.0
    """Hours in which all data files are read again while the run trains. 0 disables it.
    A file that differs from the manifest ends the run."""
    skip_windows: tuple[str, ...] = ()
    """Ranges a:b of training windows to skip (b excluded), such as those around a loss spike."""
    rehearsal: bool = True
    """Do a dry run before the first step: execute every part once on tiny inputs."""
    allow: Usual[tuple[str, ...]] = ()
    """Settings that may change in a run that continues. For example: optimizer.lr."""
    stop_at: str | None = None
    """Save and stop before this time (Unix seconds or ISO 8601). A later start continues."""
    stop_when_worse: Usual[int | None] = None
    """Finish after N validations in a row without a better one. The checkpoint of the best one
    before them is kept and named. None: train all steps."""
    profile: str | None = None
    """Range a:b of steps, such as 20:24, whose profiler trace rank 0 writes to the run folder."""
    hang_seconds: int = 300
    """Seconds to wait for a rank that does not respond, after the first step.
    Then the others save and exit."""
    model: GPTConfig = GPTConfig()
    """Shape of the network."""
    optimizer: OptimizerConfig = AdamWConfig()
    """Optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning-rate schedule."""
    eval: EvalConfig = EvalConfig()
    """Validation and tasks."""
    sample: SampleConfig = SampleConfig()
    """Samples."""
    save: SaveConfig = SaveConfig()
    """Checkpoints."""
    log: LogConfig = LogConfig()
    """What is shown while it trains."""
    guard: GuardConfig = GuardConfig()
    """Checks for loss spikes, and for ranks whose weights differ."""

    def __post_init__(self) -> None:
        check_at_least("seed", self.seed, 0, _LARGEST_SEED)
        check_at_least("batch_tokens", self.batch_tokens, 1, _LARGEST_BATCH)
        check_at_least("hang_seconds", self.hang_seconds, 1, _LONGEST_HANG)
        check_at_least("data_recheck_hours", self.data_recheck_hours, 0)
        if self.stop_at is not None:
            parse_time(self.stop_at)
        if self.profile is not None:
            parse_span(self.profile)
        parse_skips(self.skip_windows)
        weight_changes(self.data_weights_at, len(folders_and_weights(self.data)))
        if self.data_max_epochs is not None and not self.data_max_epochs > 0:
            raise ValueError(f"data_max_epochs={self.data_max_epochs:g}; use more than 0")
        if self.threads != "auto":
            check_at_least("threads", self.threads, 1, _MOST_THREADS)
        for name in ("steps", "micro_batch", "context_length"):
            if getattr(self, name) not in (None, "auto"):
                check_at_least(name, getattr(self, name), 1)
        if self.steps is not None:
            self.warmup_steps_for(self.steps)
        check_stop_when_worse(self.stop_when_worse, self.eval.every, self.save.keep_best)

    @property
    def data_text(self) -> str:
        """The data as a command line names them."""
        return " ".join(map(str, self.data))

    @property
    def weight_changes(self) -> tuple[WeightChange, ...]:
        """The changes of the mixture's weights."""
        return weight_changes(self.data_weights_at, len(self.data))

    @property
    def skips(self) -> Skips:
        """The ranges of windows to skip, as numbers."""
        return parse_skips(self.skip_windows)

    def warmup_steps_for(self, steps: int) -> int | float:
        """The warm-up of a run of `steps` steps: a preset's own is shortened if it does not fit.

        Raises: ValueError if it, the hold and the decay that the user gave do not fit.
        """
        warmup = self.schedule.warmup_steps
        if type(warmup) is not int or warmup < steps:
            return fitted_warmup(steps, self.schedule)
        batch = self.batch_tokens * steps // (WARMUP_PART * warmup)
        smaller = f"a smaller --batch-tokens, near {batch}, or " if self.steps is None else ""
        raise ValueError(
            f"schedule.warmup_steps={warmup} is not less than steps={steps}; "
            f"try {smaller}--schedule.warmup-steps {steps // WARMUP_PART}"
        )

    @property
    def network(self) -> GPTConfig:
        """`model` with this run's context length; `network_for` also sets its vocabulary size."""
        if self.context_length is None:
            return self.model
        return replace(self.model, context_length=self.context_length)

    def separator_of(self, end_of_text: int) -> int | None:
        """The id at which attention and positions begin again; None if they never do."""
        return end_of_text if self.mask_documents else None

    def network_for(self, n_vocab: int) -> GPTConfig:
        """`network` with the vocabulary size of a tokenizer of `n_vocab` ids.

        Raises: ValueError if another vocabulary size is configured.
        """
        if self.model.vocab_size not in (GPTConfig.vocab_size, n_vocab):
            raise ValueError(
                f"model.vocab_size={self.model.vocab_size} but the tokenizer of {self.data_text} "
                f"has {n_vocab} ids; give --model.vocab-size {n_vocab}, or omit it"
            )
        return replace(self.network, vocab_size=n_vocab)

    def as_json(self, network: GPTConfig, micro_batch: int) -> dict[str, Any]:
        """The configuration as JSON values, with the network and micro-batch that the run uses."""
        chosen = {"context_length": network.context_length, "micro_batch": micro_batch}
        own = replace(self, model=network, eval=self.eval.with_absolute_paths(), **chosen)
        values = as_json_value(asdict(own))
        if len(self.data) == 1:
            values["data"] = str(self.data[0])
        values["optimizer"] = {"name": optimizer_name(self.optimizer), **values["optimizer"]}
        return values
