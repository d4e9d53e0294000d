"""One GPU against itself: a step split over 1, 2, 4 and 8 processes that share it.

    python bench/gpu/split_ways.py --out bench/results/split_ways_h200.json
    python bench/gpu/split_ways.py --reduction ddp --ways 1 4 --out ddp.json    # must differ
    python bench/gpu/split_ways.py --device cpu --shape gpt2-demo --steps 2 --out toy.json

NCCL refuses two ranks on one GPU. So the processes exchange through the host, by gloo, which is
slow and changes no number: every sum is made on the GPU, with deterministic kernels. Weights,
moments and losses must have the same bits whatever the number of processes. The windows are random.
Prints Markdown and writes one JSON file. Exit code 1 if they differ.
"""

import hashlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from bench.bare_run import BARE, NETWORKS, bare_learner, check_shape, uses_muon
from bench.on_ranks import run_on_ranks
from bench.provenance import provenance
from parallel.collectives import sum_over_ranks, swap_with
from parallel.device_choice import wants_cuda
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from storage.atomic import read_json, write_json
from storage.option_values import check_at_least
from storage.script_options import parse_options
from train.optimizers.muon import MuonConfig
from train.step import LOSS, Learner, StepBatch

_LR = 1e-3
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Split one step over several processes on one GPU and compare the bits."""

    out: Path
    """Result file."""
    shape: str = "gpt2"
    """Model shape by name."""
    ways: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of processes: powers of two that divide `micro_batches`."""
    steps: int = 5
    """Steps of each."""
    micro_batches: int = 16
    """Micro-batches of a step over all processes."""
    micro_batch: int = 2
    """Windows of a micro-batch."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the matrix products."""
    compile: Literal["on", "off"] = "off"
    """Whether network and loss are compiled, by each process."""
    reduction: Literal["tree", "ddp"] = "tree"
    """How gradients are summed. ddp is the control."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that all processes share."""
    here: bool = False
    """Used by the script itself: be one of the processes."""

    def __post_init__(self) -> None:
        check_shape(self.shape)
        check_at_least("steps", self.steps, 1)
        check_at_least("micro_batch", self.micro_batch, 1)
        check_at_least("micro_batches", self.micro_batches, 1)
        for number in self.ways:
            if number < 1 or self.micro_batches % number or number & (number - 1):
                raise ValueError(
                    f"ways={number} is no power of two that divides micro_batches="
                    f"{self.micro_batches}; leave it out, or give another --micro-batches"
                )


@contextmanager
def _through_the_host() -> Iterator[None]:
    """Inside it, ranks of a tree exchange through host memory. The numbers are the same."""

    def swap(rank: int, sent: Tensor, received: Tensor) -> None:
        own, other = sent.cpu(), torch.empty(received.shape, dtype=received.dtype)
        swap_with(rank, own, other)
        received.copy_(other)

    def total(values: Tensor) -> Tensor:
        return values.copy_(sum_over_ranks(values.cpu()))

    names = {"swap_with": swap, "sum_over_ranks": total}
    with patch.multiple("parallel.tree_reduction", **names):
        yield


def _digest_of(learner: Learner) -> dict[str, str]:
    """Weights and the optimizer's state, each as sha256 of all bits."""
    weights = dict(learner.model.named_parameters())
    state = {
        f"{name}.{key}": value
        for name, parameter in weights.items()
        for key, value in sorted(learner.optimizer.state[parameter].items())
        if isinstance(value, Tensor)
    }
    return {"weights": _sha256(weights), "moments": _sha256(state)}


def _sha256(tensors: dict[str, Any]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _train(arguments: Arguments, ranks: Ranks) -> dict[str, Any]:
    """Some steps on this process's share of random windows; the digests and losses at their end."""
    network = NETWORKS[arguments.shape]
    config = replace(
        BARE,
        model=network,
        batch_tokens=arguments.micro_batches * arguments.micro_batch * network.context_length,
        micro_batch=arguments.micro_batch,
        dtype=arguments.dtype,
        compile=arguments.compile,
        optimizer=MuonConfig() if uses_muon(network) else BARE.optimizer,
        reduction=arguments.reduction,
    )
    learner = bare_learner(config, ranks)
    plan, vocabulary = learner.plan, learner.model.config.vocab_size
    own = [window for part in plan.windows_of(ranks.rank) for window in part]
    generator = torch.Generator().manual_seed(1)
    began, losses = time.perf_counter(), []
    for step in range(arguments.steps):
        shape = plan.windows, plan.context_length + 1
        windows = torch.randint(vocabulary, shape, generator=generator).to(torch.int16)[own]
        batch = StepBatch(step * plan.windows, 0, windows.to(ranks.device))
        losses.append(float(learner.step(batch, _LR)[LOSS]))
    seconds = (time.perf_counter() - began) / arguments.steps
    return _digest_of(learner) | {"losses": losses, "seconds_a_step": seconds}


def table_of(rows: dict[str, dict[str, Any]]) -> str:
    """One row for each number of processes, as Markdown."""
    lines = ["| processes | weights | moments | last loss | seconds a step | same bits |"]
    lines += ["| --: | --- | --- | --: | --: | --- |"]
    first = next(iter(rows.values()))
    for name, row in rows.items():
        same = "yes" if is_same(first, row) else "**NO**"
        cells = f"`{row['weights'][:8]}` | `{row['moments'][:8]}` | {row['losses'][-1]:.6f}"
        lines.append(f"| {name} | {cells} | {row['seconds_a_step']:.2f} | {same} |")
    return "\n".join(lines)


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether weights, moments and losses have the same bits."""
    return all(one[key] == other[key] for key in ("weights", "moments", "losses"))


def _be_a_rank(arguments: Arguments) -> None:
    """Train as one of the processes; the first one writes the result."""
    ranks = start("cpu", deterministic=True)  # so that the group is gloo's
    if wants_cuda(arguments.device, 1):
        ranks = replace(ranks, device=torch.device("cuda", 0))
    with _through_the_host():
        found = _train(arguments, ranks)
    if ranks.is_main:
        write_json(arguments.out, found)
    stop()


def main() -> None:
    """Train with each number of processes, compare, print the table, write the JSON file."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        if arguments.here:
            _be_a_rank(arguments)
            return
        settings = asdict(arguments) | {"out": arguments.out.name}
        head, rows = provenance(("torch",)) | {"settings": settings}, {}
        for number in arguments.ways:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "found.json"
                words = (*sys.argv[1:], "--here", "--out", str(out))
                run_on_ranks(sys.argv[0], words, number)
                rows[str(number)] = read_json(out)
            write_json(arguments.out, head | {"ways": rows})
        log.info("%s", table_of(rows))
    first = next(iter(rows.values()))
    sys.exit(0 if all(is_same(first, row) for row in rows.values()) else 1)


if __name__ == "__main__":
    main()
