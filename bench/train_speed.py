"""Speed of training steps, compared with nanoGPT's own model and step.

    python bench/train_speed.py --nanogpt ../nanoGPT --data data/python_docs
    python bench/train_speed.py --nanogpt ../nanoGPT --dtypes bfloat16 --forms compiled
    python bench/train_speed.py --shape gpt2 --batch 64 --accumulate 8 --dtypes bfloat16 \
        --forms compiled --device cuda --nanogpt ../nanoGPT

Our step is that of the trainer's Learner and Loader; the wait for the loader is also timed alone.
Every round takes `--steps` steps of each trainer, in alternating order, and gives one ratio. The
result is the median ratio. On the CPU, nanoGPT runs in a process of its own with the defaults of
glibc's allocator, while ours keeps large blocks as the trainer does. To let both keep them, set
MALLOC_MMAP_MAX_=0 MALLOC_TOP_PAD_=268435456. Prints Markdown and writes one JSON file.
"""

import gc
import itertools
import logging
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from bench.bare_run import BARE, NETWORKS, bare_learner, bare_loader, check_shape
from bench.nanogpt_step import NanoStep, read_model_file, write_tokens
from bench.peer_process import PeerProcess, Steps
from bench.provenance import RESULTS, provenance
from data_prep.dataset.shards import open_data_set
from model.estimates.flops import peak_flops, training_flops_per_token
from parallel.ranks import Ranks, allocator_chosen, silence_other_ranks, start, user_errors
from storage.atomic import write_json
from storage.script_options import parse_options
from train.config import Config
from train.loader import Loader
from train.memory.host_memory import keeps_large_blocks
from train.step import LOSS, Learner

_OUT = RESULTS / "train_speed.json"
_LR = 6e-4  # constant, the same in nanoGPT's optimizer
_WARM_UP = 2  # untimed steps of each trainer: compilation, moments, first allocations
_GOALS = {"eager": 1.3, "compiled": 1.1}

log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Time our training step and nanoGPT's."""

    data: Path = Path("data/python_docs")
    """Data set folder with GPT-2's tokenizer, such as `data_prep/text.py --embedded` makes."""
    nanogpt: Path | None = None
    """A checkout of nanoGPT; default: time only our step."""
    shape: str = "30M"
    """Model shape by name; 30M has 6 layers, width 384 and context length 256."""
    batch: int = 8
    """Windows of a micro-step."""
    accumulate: int = 1
    """Micro-steps of a step."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Arithmetic of the matrix products."""
    forms: tuple[Literal["eager", "compiled"], ...] = ("eager", "compiled")
    """Without and with torch.compile."""
    fused_loss: Literal["auto", "on", "off"] = "auto"
    """The trainer's option of that name."""
    residual: Literal["float32", "bfloat16"] = "float32"
    """The trainer's option of that name; used only with bfloat16."""
    rounds: int = 5
    """Rounds of each case."""
    steps: int = 10
    """Steps of each trainer in a round."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on."""
    out: Path = _OUT
    """Result file."""

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if self.rounds < 1 or self.steps < 1:
            raise ValueError(f"rounds={self.rounds} and steps={self.steps} must be 1 or more")


class _OurStep:
    """Our learner with its loader. It adds up the time that it waits for batches."""

    def __init__(self, learner: Learner, loader: Loader) -> None:
        self.learner = learner
        self.loader = loader
        self.waited = 0.0

    def step(self) -> torch.Tensor:
        """One optimizer step as in the training loop; returns its loss."""
        begin = time.perf_counter()
        batch = self.loader.next_step()
        self.waited += time.perf_counter() - begin
        return self.learner.step(batch, _LR)[LOSS]


def _step_config(arguments: Arguments, dtype: str, form: str) -> Config:
    """The configuration of the steps that are timed."""
    network = NETWORKS[arguments.shape]
    return replace(
        BARE,
        data=(arguments.data,),
        batch_tokens=arguments.batch * arguments.accumulate * network.context_length,
        micro_batch=arguments.batch,
        dtype="float32" if dtype == "float32" else "bfloat16",
        compile="on" if form == "compiled" else "off",
        fused_loss=arguments.fused_loss,
        residual=arguments.residual if dtype == "bfloat16" else "float32",
        device=arguments.device,
        model=network,
    )


def _timed(side: Steps, steps: int, device: torch.device) -> float:
    """Seconds per step, including all work on the device.

    Raises: RuntimeError if the last loss is not finite.
    """
    begin = time.perf_counter()
    loss = torch.zeros(())
    for _ in range(steps):
        loss = side.step()
    if not torch.isfinite(loss).item():  # waits for the device
        raise RuntimeError(f"{type(side).__name__}: the loss is not finite")
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def _measure(arguments: Arguments, sides: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Seconds per step of each trainer in every round, and the losses of the first steps."""
    first = {name: side.step().item() for name, side in sides.items()}
    for side in sides.values():
        _timed(side, _WARM_UP, device)
    sides["ours"].waited = 0.0
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            seconds[name].append(_timed(sides[name], arguments.steps, device))
    waited = sides["ours"].waited / (sum(seconds["ours"]) * arguments.steps)
    return {"first_loss": first, "seconds_per_step": seconds, "data_wait_share": waited}


def reset_peak_memory(device: torch.device) -> None:
    """Free the memory of earlier cases and reset the peak that torch recorded."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _one_case(
    arguments: Arguments, dtype: str, form: str, ranks: Ranks, folder: Path
) -> dict[str, Any]:
    """Build both trainers and time them."""
    reset_peak_memory(ranks.device)
    config = _step_config(arguments, dtype, form)
    learner = bare_learner(config, ranks)
    loader = bare_loader(config, learner)
    sides: dict[str, Steps] = {"ours": _OurStep(learner, loader)}
    if arguments.nanogpt is not None:
        tokens = folder / "train.bin"
        if not tokens.exists():
            write_tokens(open_data_set(arguments.data), tokens)
        read_model_file(arguments.nanogpt)  # so that an error is raised in this process
        how = arguments.batch, arguments.accumulate, learner.dtype, form == "compiled", ranks.device
        peer = arguments.nanogpt, learner.model.config, tokens, *how
        own_process = ranks.device.type == "cpu"
        sides["nanogpt"] = PeerProcess(NanoStep, *peer) if own_process else NanoStep(*peer)
    try:
        found = _measure(arguments, sides, ranks.device)
    finally:
        loader.close()
        if isinstance(peer := sides.get("nanogpt"), PeerProcess):
            peer.close()
    torch.compiler.reset()
    return {"dtype": dtype, "form": form} | found | _summary(found, learner)


def _summary(found: dict[str, Any], learner: Learner) -> dict[str, Any]:
    """Medians, ratios and rates of one case."""
    seconds = found["seconds_per_step"]
    median = {name: statistics.median(times) for name, times in seconds.items()}
    result: dict[str, Any] = {
        "tokens_per_second": {name: learner.plan.tokens / took for name, took in median.items()}
    }
    if "nanogpt" in seconds:
        result["ratios"] = [
            peer / ours for ours, peer in zip(seconds["ours"], seconds["nanogpt"], strict=True)
        ]
        result["median_ratio"] = statistics.median(result["ratios"])
    if learner.ranks.device.type == "cuda":
        peak = peak_flops(torch.cuda.get_device_name(), learner.dtype)
        flops = training_flops_per_token(learner.model.config)
        if peak is not None:
            rates = result["tokens_per_second"]
            result["mfu"] = {name: rate * flops / peak for name, rate in rates.items()}
        result["peak_memory_bytes"] = torch.cuda.max_memory_allocated()  # of both trainers together
    return result


def _table_of(cases: list[dict[str, Any]]) -> str:
    """Every case as a row of Markdown."""
    lines = [
        "| | ours, tokens/s | nanoGPT, tokens/s | ratio (rounds) | goal | data wait |",
        "| --- | --: | --: | --- | --: | --: |",
    ]
    for case in cases:
        rates = case["tokens_per_second"]
        peer, ratio = "", ""
        if "nanogpt" in rates:
            ratios = case["ratios"]
            peer = f"{rates['nanogpt']:,.0f}"
            ratio = f"{case['median_ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(
            f"| {case['dtype']}, {case['form']} | {rates['ours']:,.0f} | {peer} | {ratio} | "
            f"{_GOALS[case['form']]} | {case['data_wait_share']:.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Time every case, report."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start(arguments.device)
        origin = provenance(("torch", "numpy"))
        settings = {
            name: getattr(arguments, name)
            for name in ("shape", "batch", "accumulate", "fused_loss", "residual", "steps")
        }
        settings |= {
            "allocator_set_for_both": allocator_chosen(),
            "ours_keeps": keeps_large_blocks(),
        }
        cases = []
        report = origin | {"threads": torch.get_num_threads(), "settings": settings, "cases": cases}
        with tempfile.TemporaryDirectory() as folder:
            for dtype, form in itertools.product(arguments.dtypes, arguments.forms):
                cases.append(_one_case(arguments, dtype, form, ranks, Path(folder)))
                log.info("%s", _table_of(cases[-1:]).splitlines()[-1])
                write_json(arguments.out, report)  # after each case, in case of an interruption
        log.info("%s", _table_of(cases))


if __name__ == "__main__":
    main()
