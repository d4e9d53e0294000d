"""Print what a model costs to train: parameters, FLOPs, memory, time.

    python model/cost.py
    python model/cost.py gpt2-xl --gpu h100 --gpus 8 --tokens 30000000000
    python model/cost.py gpt2 --gpu h100 --gpus 8 --price 2.50
    python model/cost.py gpt2-xl --context-length 16384
    python model/cost.py gpt2 --n-layer 24 --n-embd 1024 --n-head 16 --json cost.json
    python model/cost.py --gpu help

No GPU is needed, and no network is built. Time and money are estimates: they follow from an assumed
utilisation (MFU), which is printed with them. All other figures follow from the shape.
"""

import logging
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from model.config import GPTConfig
from model.estimates.breakdown import block_as_json, context_comparison, shares
from model.estimates.budget import disk_budget
from model.estimates.documents import documents_as_json
from model.estimates.flops import CONVENTIONS, GPUS, forward_flops
from model.estimates.largest_micro_batch import fast_windows, largest_micro_batch
from model.estimates.memory import USABLE_SHARE, StepShape, predict_memory
from model.estimates.parameters import attention_parameters, count_parameters
from model.estimates.prediction import ASSUMED_MFU, Prediction, predict
from model.estimates.table import format_gpus, format_report, gpus_in_words
from model.estimates.updates import UPDATES
from model.shapes import SHAPES
from storage.script_options import parse_options
from storage.terminal.json_output import check_json_target, write_json_target
from storage.terminal.standard_output import tolerate_lost_output
from storage.user_errors import exit_on_user_error

log = logging.getLogger("model.cost")
_DAY = 86_400.0
_LEAST_MFU = 1e-9
_LARGEST_PRICE = 1_000_000
_COUNTS = ("gpus", "tokens", "batch_tokens", "micro_batch", "checkpoints", "document_tokens")
_LIST = "help"  # in place of a GPU


@dataclass(frozen=True)
class Arguments:
    """Print what a model costs to train."""

    model: Annotated[GPTConfig, tyro.conf.arg(name="")] = GPTConfig()
    """Shape of the network."""
    micro_batch: int | Literal["auto"] = "auto"
    """Windows of one forward pass on one GPU. auto: as many as fit and make it faster."""
    batch_tokens: int = 524_288
    """Tokens of one optimizer step, over all GPUs."""
    gpu: str = "h200"
    """GPU model, such as h200, h100, a100 or rtx4090; help: list all with their peaks."""
    gpus: int = 1
    """Number of GPUs; the estimate assumes that N GPUs are N times as fast as one."""
    tokens: int = 10_000_000_000
    """Tokens to train on."""
    mfu: float = ASSUMED_MFU
    """Assumed utilisation: share of the GPU's dense peak, by 6N + 12LCT FLOPs a token."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the matrix products; on a GPU those of float32 are TF32, as in training."""
    compile: Literal["on", "off"] = "on"
    """Whether network and loss are compiled (torch.compile)."""
    reduction: Literal["ddp", "tree"] = "ddp"
    """How gradients are summed; tree gives the same bits on any number of GPUs."""
    recompute: Literal["off", "blocks"] = "off"
    """Whether the backward pass computes each block again instead of keeping its activations."""
    document_tokens: int | None = None
    """Mean tokens of a document, with --mask-documents in training; each token may be the
    last one by the same chance. The time is as without. Default: attention crosses documents."""
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """Optimizer; the default is that of the shape's preset."""
    price: float | None = None
    """Price of one GPU for an hour, in any currency. Default: no cost is printed."""
    checkpoints: int = 3
    """Checkpoints that are kept: two newest and the best one, as in training, and for a preset with
    a hold that at its end. One more is written at a time."""
    json: Path | None = None
    """JSON file to write all figures to; -: standard output."""

    def __post_init__(self) -> None:
        if self.gpu not in (*GPUS, _LIST):
            raise ValueError(
                f"gpu={self.gpu} is not known; choose one of {', '.join(GPUS)} (--gpu "
                "help lists their peaks and memory)"
            )
        for name in _COUNTS:
            value = getattr(self, name)
            if value not in ("auto", None) and value < 1:
                raise ValueError(f"{name}={value} is too small; use 1 or more")
        if not _LEAST_MFU <= self.mfu <= 1:
            raise ValueError(f"mfu={self.mfu} is not a utilisation; use more than 0 and at most 1")
        if self.price is not None and not 0 <= self.price <= _LARGEST_PRICE:
            raise ValueError(f"price={self.price} is out of range; use 0 to {_LARGEST_PRICE:,}")
        check_json_target(self.json)
        self._check_batch()

    def _check_batch(self) -> None:
        if self.batch_tokens % (self.model.context_length * self.gpus):
            unit = self.model.context_length * self.gpus
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is not a multiple of {unit} (context_length x "
                f"gpus); try --batch-tokens {max(round(self.batch_tokens / unit), 1) * unit}"
            )
        if self.reduction == "tree" and self.gpus & (self.gpus - 1):
            raise ValueError(
                f"gpus={self.gpus} is no power of two, as --reduction tree needs; give --gpus "
                f"{1 << (self.gpus.bit_length() - 1)} or {1 << self.gpus.bit_length()}, or "
                "--reduction ddp"
            )
        if self.micro_batch != "auto" and self.share % self.micro_batch:
            largest = self.share & -self.share  # the largest power of two that divides
            raise ValueError(
                f"micro_batch={self.micro_batch} does not divide a GPU's share of {self.share} "
                f"windows of a step; try --micro-batch {largest}, or auto"
            )

    @property
    def share(self) -> int:
        """Windows of one step on one GPU."""
        return self.batch_tokens // (self.model.context_length * self.gpus)

    def step(self, micro_batch: int) -> StepShape:
        """A rank's step with this micro-batch."""
        return StepShape(
            micro_batch=micro_batch,
            dtype=getattr(torch, self.dtype),
            compiled=self.compile == "on",
            micro_steps=self.share // micro_batch,
            world_size=self.gpus,
            reduction=self.reduction,
            recompute=self.recompute == "blocks",
            mask_documents=self.document_tokens is not None,
            update=UPDATES[self.optimizer](self.model),
        )


def cost_report(name: str, arguments: Arguments) -> dict[str, Any]:
    """All figures as JSON values."""
    config, gpu = arguments.model, GPUS[arguments.gpu]
    largest = {how: _largest(arguments, how == "compiled") for how in ("compiled", "not_compiled")}
    chosen = largest["compiled" if arguments.compile == "on" else "not_compiled"]
    wanted = arguments.micro_batch
    automatic = min(chosen or 1, fast_windows(config.context_length, "cuda"))
    step = arguments.step(automatic if wanted == "auto" else wanted)
    found = predict(config, step, arguments.batch_tokens, gpu.part_of_name, arguments.mfu)
    update = UPDATES[arguments.optimizer](config)
    disk = disk_budget(config, update, arguments.checkpoints, arguments.tokens)
    time = _time(arguments, step, found)
    own_length = SHAPES[name.partition(",")[0]].context_length
    return {
        "name": name,
        "shape": asdict(config) | {"padded_vocab_size": config.padded_vocab_size},
        "parameters": _parameters(config),
        "one_block": block_as_json(config),
        "forward_flops_per_window": {
            "padded": forward_flops(config),
            "published": forward_flops(config, padded=False),
        },
        "forward_flops_shares": shares(forward_flops(config, padded=False)),
        "context_comparison": None
        if config.context_length == own_length
        else context_comparison(config, own_length),
        "training_flops_per_token": {name: f(config) for name, f in CONVENTIONS.items()},
        "documents": documents_as_json(config, arguments.document_tokens),
        "update": {
            "optimizer": arguments.optimizer,
            **asdict(update),
            "share_of_step_flops": found.update_share,
        },
        "memory_bytes": {
            "compiled": _memory(config, step, compiled=True),
            "not_compiled": _memory(config, step, compiled=False),
        },
        "micro_batch": {
            "taken": step.micro_batch,
            "accumulation_steps": arguments.share // step.micro_batch,
            "largest": largest,
            "usable_bytes": int(USABLE_SHARE * gpu.memory_bytes),
        },
        "time": time,
        "disk_bytes": {**asdict(disk), "total": disk.total, "kept": arguments.checkpoints},
        "money": {
            "price_of_gpu_hour": arguments.price,
            "total": None if arguments.price is None else arguments.price * time["gpu_hours"],
        },
        "step": {
            "dtype": arguments.dtype,
            "compile": arguments.compile,
            "recompute": arguments.recompute,
            "batch_tokens": arguments.batch_tokens,
        },
    }


def _time(arguments: Arguments, step: StepShape, found: Prediction) -> dict[str, Any]:
    """The estimated time, and what it follows from."""
    assert found.tokens_per_second is not None  # GPUS has a peak for every GPU
    days = arguments.tokens / found.tokens_per_second / _DAY
    return {
        "gpu": arguments.gpu,
        "gpus": arguments.gpus,
        "peak_flops": GPUS[arguments.gpu].peak(step.dtype),
        "arithmetic": "TF32" if step.dtype == torch.float32 else "bfloat16",
        "assumed_mfu": arguments.mfu,
        "tokens": arguments.tokens,
        "tokens_per_second": found.tokens_per_second,
        "step_seconds": arguments.batch_tokens / found.tokens_per_second,
        "steps": -(-arguments.tokens // arguments.batch_tokens),
        "hours": 24 * days,
        "days": days,
        "gpu_hours": 24 * days * arguments.gpus,
    }


def _largest(arguments: Arguments, compiled: bool) -> int | None:
    """The largest micro-batch that fits the GPU; None if not even one window does."""
    step = replace(arguments.step(1), compiled=compiled)
    memory = GPUS[arguments.gpu].memory_bytes
    try:
        return largest_micro_batch(arguments.model, arguments.share, memory, step)
    except ValueError:
        return None


def _memory(config: GPTConfig, step: StepShape, compiled: bool) -> dict[str, Any]:
    """Bytes of one GPU by part, also if every block were recomputed in the backward pass."""
    chosen = replace(step, compiled=compiled)
    again = predict_memory(config, replace(chosen, recompute=True))
    found = asdict(predict_memory(config, chosen))
    return found | {"layers_computed_again": again.layers, "peak_computed_again": again.peak}


def _parameters(config: GPTConfig) -> dict[str, Any]:
    """Numbers of parameters by part and in total, as trained (padded) and as published."""
    rows: dict[str, Any] = {"one_attention_layer": attention_parameters(config)}
    for name, padded in (("padded", True), ("published", False)):
        counts = count_parameters(config, padded)
        rows[name] = asdict(counts) | {
            "total": counts.total,
            "total_tied": count_parameters(replace(config, tied=True), padded).total,
            "total_untied": count_parameters(replace(config, tied=False), padded).total,
            "without_positions": counts.without_positions,
            "without_embeddings": counts.without_embeddings,
        }
    return rows


def parse_arguments(words: list[str]) -> tuple[str, Arguments]:
    """The name of the shape (the first word, default gpt2) and the arguments."""
    # train/command_line/parse.py does the same for presets of runs; model/ may not import train/.
    named = bool(words) and not words[0].startswith("-")
    name = words[0] if named else "gpt2"
    if name not in SHAPES:
        raise ValueError(f"shape {name} is not known; choose one of {', '.join(SHAPES)}")
    # train/presets.py has optimizers and schedules; tests compare.
    modern = SHAPES[name].initial_weights == "zero_outputs"
    default = Arguments(
        model=SHAPES[name],
        optimizer="muon" if modern else "adamw",
        checkpoints=Arguments.checkpoints + modern,  # its schedule holds the learning rate
    )
    arguments = parse_options(
        default,
        words[1:] if named else words,
        prefixed=False,
        prog=f"model/cost.py {name}",
        description=f"{Arguments.__doc__} First word, default gpt2: {', '.join(SHAPES)}. "
        f"GPUs, with dense bfloat16 peak and memory: {gpus_in_words()}.",
    )
    return name if arguments.model == SHAPES[name] else f"{name}, changed", arguments


def main() -> None:
    """Compute the report, print it, and write it as JSON if asked to."""
    tolerate_lost_output()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with exit_on_user_error(ValueError, OSError):
        name, arguments = parse_arguments(sys.argv[1:])
        if arguments.gpu == _LIST:
            log.info("%s", format_gpus())
            return
        report = cost_report(name, arguments)
        log.info("%s", format_report(report))
        write_json_target(arguments.json, report)


if __name__ == "__main__":
    main()
