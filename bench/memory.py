"""Peak memory of real training steps, compared with the prediction.

    python bench/memory.py                          # all cases of this machine's device
    python bench/memory.py --cases 30M-8-bf16       # only one case
    python bench/memory.py --allocator glibc        # glibc's defaults, not the trainer's settings

The first one takes a data set with GPT-2's tokenizer, such as `data_prep/text.py --embedded` makes.

Each case has a process of its own, or two ranks, of which the first is measured. It builds a run
as the trainer does, on a prepared data set, and takes a few steps. On the CPU it measures the peak
resident size minus the size after imports, on CUDA the peak that torch allocated and the peak that
it reserved. The prediction is that of model/estimates/memory.py. Both are calculated by
train/memory/forecast.py, as in the trainer.
Prints Markdown and writes one JSON file.
"""

import logging
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from bench.bare_run import BARE, NETWORKS, uses_muon
from bench.on_ranks import run_on_ranks
from bench.provenance import RESULTS, device_name, provenance
from parallel.collectives import broadcast_object
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from storage.atomic import read_json, write_json
from storage.script_options import parse_options
from train.build import build_run
from train.optimizers.muon import MuonConfig
from train.preflight.inputs import check_inputs
from train.schedule import learning_rate

OUT = RESULTS / "memory.json"
_STEPS = 3  # the first update allocates the optimizer's moments
# The value is glibc's default. If a variable of glibc is set, parallel/ranks.py changes no setting.
_GLIBC_DEFAULTS = {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}

log = logging.getLogger("train")


@dataclass(frozen=True)
class Case:
    """One network, the settings of its step, and the number of micro-steps."""

    network: str
    micro_batch: int
    dtype: Literal["float32", "bfloat16"]
    compiled: bool
    micro_steps: int = 2
    recompute: Literal["off", "blocks"] = "off"
    ranks: int = 1
    reduction: Literal["ddp", "tree"] = "ddp"

    @property
    def windows(self) -> int:
        """Windows of a step over all ranks."""
        return self.micro_batch * self.micro_steps * self.ranks

    @property
    def name(self) -> str:
        """The name for `--cases`."""
        dtype = {"float32": "f32", "bfloat16": "bf16"}[self.dtype]
        how = "-compiled" if self.compiled else ""
        once = "-once" if self.micro_steps == 1 else ""
        again = "-recomputed" if self.recompute == "blocks" else ""
        tree = f"-tree-{self.micro_steps}-on-{self.ranks}" if self.reduction == "tree" else ""
        return f"{self.network}-{self.micro_batch}-{dtype}{how}{once}{again}{tree}"


_CASES = {
    "cpu": (
        Case("gpt2-demo", 16, "float32", False),
        Case("30M", 2, "float32", False),
        Case("30M", 8, "float32", False),
        Case("30M", 8, "float32", False, micro_steps=1),
        Case("30M", 8, "bfloat16", False),
        Case("30M", 8, "float32", False, recompute="blocks"),
        Case("gpt2-demo", 16, "float32", False, recompute="blocks"),
        Case("30M-llama", 8, "bfloat16", False),
        Case("gpt2", 1, "float32", False),
        Case("gpt2", 1, "bfloat16", False),
        Case("gpt2-demo", 16, "float32", True),
        Case("30M", 8, "float32", True),
        Case("30M", 8, "bfloat16", True),
        Case("30M-llama", 8, "bfloat16", True),
        Case("gpt2", 1, "bfloat16", True),
        Case("demo-modern", 16, "float32", False, micro_steps=1),
        Case("demo-modern", 8, "float32", False),
        Case("30M-modern", 8, "float32", False),
        Case("30M-modern", 8, "bfloat16", False),
        Case("30M-modern", 8, "float32", True),
        Case("modern", 1, "float32", False),
        Case("30M", 1, "float32", False, micro_steps=8, reduction="tree"),
        Case("30M", 1, "float32", False, micro_steps=4, ranks=2, reduction="tree"),
    ),
    "cuda": (
        Case("gpt2", 16, "bfloat16", False),
        Case("gpt2", 64, "bfloat16", False),
        Case("gpt2", 16, "bfloat16", True),
        Case("gpt2", 64, "bfloat16", True),
        Case("gpt2", 128, "bfloat16", True),
        Case("gpt2", 64, "bfloat16", True, recompute="blocks"),
        Case("gpt2-medium", 32, "bfloat16", True),
        Case("gpt2-large", 16, "bfloat16", True),
        Case("gpt2-xl", 8, "bfloat16", True),
        Case("modern", 64, "bfloat16", False),
        Case("modern", 64, "bfloat16", True),
        Case("modern-medium", 32, "bfloat16", True),
    ),
}


@dataclass(frozen=True)
class Arguments:
    """Measure the peak memory of training steps and compare it with the prediction."""

    data: Path = Path("data/python_docs")
    """Data set folder; its tokenizer has the ids of the networks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on."""
    cases: tuple[str, ...] = ()
    """Cases by name; default: all cases of the device."""
    allocator: Literal["trainer", "glibc"] = "trainer"
    """On the CPU: the trainer's settings (parallel/allocator.py), or the defaults of glibc."""
    out: Path = OUT
    """Result file."""
    here: bool = False
    """Used by the script itself: measure one case in this process and write only its record."""


def _chosen(arguments: Arguments, device: str) -> tuple[Case, ...]:
    """The requested cases. Raises: ValueError for a name that is not a case of the device."""
    known = {case.name: case for case in _CASES[device]}
    wrong = [name for name in arguments.cases if name not in known]
    if wrong:
        raise ValueError(f"there is no case {wrong[0]} on {device}; choose from {', '.join(known)}")
    return tuple(known[name] for name in arguments.cases or known)


def _measure(case: Case, data: Path, ranks: Ranks) -> dict[str, Any]:
    """The peak memory of a few real steps in bytes, and the trainer's prediction."""
    network = NETWORKS[case.network]
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            BARE,
            data=(data,),
            out=Path(broadcast_object(folder)) / "run",
            steps=_STEPS,
            batch_tokens=case.windows * network.context_length,
            reduction=case.reduction,
            micro_batch=case.micro_batch,
            dtype=case.dtype,
            compile="on" if case.compiled else "off",
            recompute=case.recompute,
            device="cuda" if ranks.device.type == "cuda" else "cpu",
            model=network,
            optimizer=MuonConfig() if uses_muon(network) else BARE.optimizer,
        )
        run = build_run(config, ranks, check_inputs(config, ranks))
        for step in range(_STEPS):
            lr = learning_rate(step, _STEPS, config.optimizer.lr, config.schedule)
            run.learner.step(run.loader.next_step(), lr)
        run.close()
    measured, predicted = run.forecast.measured(), run.forecast.predict(run.plan).memory
    found = asdict(case) | {
        "vocab_size": run.model.config.vocab_size,
        "measured": measured,
        "after_imports": run.forecast.at_first,
        "predicted": predicted.peak,
        "ratio": predicted.peak / measured,
        "at": predicted.peak_moment,
        "fused_loss": run.forecast.step_shape(run.plan).fused_loss,
        "keeps_large_blocks": run.forecast.keeps_large_blocks,
    }
    if ranks.device.type == "cuda":
        found["reserved"] = torch.cuda.max_memory_reserved()
    return found


def _in_own_process(case: Case, arguments: Arguments, device: str) -> dict[str, Any]:
    """Measure one case in a fresh process. Raises: ValueError if it fails."""
    glibc = device == "cpu" and arguments.allocator == "glibc"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "case.json"
        words = ("--here", "--data", str(arguments.data), "--device", device)
        words += ("--cases", case.name, "--out", str(out))
        run_on_ranks(sys.argv[0], words, case.ranks, _GLIBC_DEFAULTS if glibc else {})
        return read_json(out)


def _header(arguments: Arguments, device: str) -> dict[str, Any]:
    """The provenance of the numbers. Call it before the measurement, because it has the load."""
    return provenance(["torch"]) | {
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "allocator": arguments.allocator if device == "cpu" else "torch's",
    }


def _line_of(row: dict[str, Any]) -> str:
    """One case as a row of Markdown."""
    mib = {
        key: f"{row[key] / 2**20:,.0f}"
        for key in ("measured", "predicted", "reserved")
        if key in row
    }
    compiled = "compiled" if row["compiled"] else "eager"
    compiled += ", recomputed" if row["recompute"] == "blocks" else ""
    return (
        f"| {row['network']} | {row['micro_batch']} x {row['micro_steps']} x {row['ranks']} "
        f"| {row['dtype']} | {row['reduction']}, {compiled} | {mib['measured']} "
        f"| {mib.get('reserved', '-')} | {mib['predicted']} | {row['ratio'] - 1:+.1%} |"
    )


def main() -> None:
    """Measure every case in a process of its own, print a table, write the JSON file."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start(arguments.device)
        device = ranks.device.type
        cases = _chosen(arguments, device)
        if arguments.here:
            found = _measure(cases[0], arguments.data, ranks)
            if ranks.is_main:
                write_json(arguments.out, found)
            stop()
            return
        head = _header(arguments, device)
        log.info("| network | micro-batches | dtype | step | MiB | reserved | predicted | off by |")
        log.info("|---|---|---|---|--:|--:|--:|--:|")
        rows = []
        for case in cases:
            rows.append(_in_own_process(case, arguments, device))
            log.info("%s", _line_of(rows[-1]))
            write_json(arguments.out, head | {"cases": rows})


if __name__ == "__main__":
    main()
