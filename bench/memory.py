"""Peak memory of real training steps against what model/estimates/memory.py predicts.

    python bench/memory.py                          the cases of this machine's device
    python bench/memory.py --cases 30M-8-bf16       only these
    python bench/memory.py --allocator glibc        with glibc's own ways, not the trainer's

Each case is a process of its own: it builds a run as the trainer does, on a prepared data set, and
takes a few steps. CPU: peak resident size less that after imports. CUDA: what torch allocated at
most, and reserved. Measured and predicted by what the trainer itself prints
(train/memory/forecast.py).
Prints Markdown, writes one JSON.
"""

import logging
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from bench.bare_run import BARE, NETWORKS
from bench.provenance import device_name, provenance
from parallel.ranks import Ranks, silence_other_ranks, start, user_errors
from storage.atomic import read_json, write_json
from storage.boolean_flags import with_flags
from train.build import build_run
from train.preflight.inputs import check_inputs
from train.schedule import learning_rate

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "results" / "memory.json"
STEPS = 3  # the optimizer's moments are there from the second on
# Changes nothing; but where a variable of glibc's is set, parallel/ranks.py leaves all as it is.
GLIBC_AS_IT_COMES = "GLIBC_TUNABLES=glibc.malloc.perturb=0"

log = logging.getLogger("train")


@dataclass(frozen=True)
class Case:
    """One network, how its step runs, and how many micro-steps there are."""

    network: str
    micro_batch: int
    dtype: Literal["float32", "bfloat16"]
    compiled: bool
    micro_steps: int = 2

    @property
    def name(self) -> str:
        """How it is asked for."""
        dtype = {"float32": "f32", "bfloat16": "bf16"}[self.dtype]
        how = "-compiled" if self.compiled else ""
        once = "-once" if self.micro_steps == 1 else ""
        return f"{self.network}-{self.micro_batch}-{dtype}{how}{once}"


CASES = {
    "cpu": (
        Case("demo", 16, "float32", False),
        Case("30M", 2, "float32", False),
        Case("30M", 8, "float32", False),
        Case("30M", 8, "float32", False, micro_steps=1),
        Case("30M", 8, "bfloat16", False),
        Case("30M-llama", 8, "bfloat16", False),
        Case("gpt2", 1, "float32", False),
        Case("gpt2", 1, "bfloat16", False),
        Case("demo", 16, "float32", True),
        Case("30M", 8, "float32", True),
        Case("30M", 8, "bfloat16", True),
        Case("30M-llama", 8, "bfloat16", True),
        Case("gpt2", 1, "bfloat16", True),
    ),
    "cuda": (
        Case("gpt2", 16, "bfloat16", False),
        Case("gpt2", 64, "bfloat16", False),
        Case("gpt2", 16, "bfloat16", True),
        Case("gpt2", 64, "bfloat16", True),
        Case("gpt2", 128, "bfloat16", True),
        Case("gpt2-medium", 32, "bfloat16", True),
        Case("gpt2-large", 16, "bfloat16", True),
        Case("gpt2-xl", 8, "bfloat16", True),
    ),
}


@dataclass(frozen=True)
class Arguments:
    """Measure the peak memory of training steps and compare it with the prediction."""

    data: Path = Path("data/python_docs")
    """Data set folder with GPT-2's tokenizer, such as `data_prep/text.py --embedded` makes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    cases: tuple[str, ...] = ()
    """Cases by name; none is all of the device's."""
    allocator: Literal["trainer", "glibc"] = "trainer"
    """On the CPU: memory kept as the trainer does (parallel/allocator.py), or glibc as it comes."""
    out: Path = OUT
    """Result file."""
    here: bool = False
    """Measure the one case in this very process and write only its record (used by itself)."""


def chosen(arguments: Arguments, device: str) -> tuple[Case, ...]:
    """The cases asked for. Raises: ValueError for a name that is none."""
    known = {case.name: case for case in CASES[device]}
    wrong = [name for name in arguments.cases if name not in known]
    if wrong:
        raise ValueError(f"there is no case {wrong[0]} on {device}; choose from {', '.join(known)}")
    return tuple(known[name] for name in arguments.cases or known)


def measure(case: Case, data: Path, ranks: Ranks) -> dict[str, Any]:
    """One case's bytes at the peak of a few real steps, and what the trainer predicted."""
    network = NETWORKS[case.network]
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            BARE,
            data=data,
            out=Path(folder) / "run",
            steps=STEPS,
            batch_tokens=case.micro_batch * case.micro_steps * network.context_length,
            micro_batch=case.micro_batch,
            dtype=case.dtype,
            compile="on" if case.compiled else "off",
            device="cuda" if ranks.device.type == "cuda" else "cpu",
            model=network,
        )
        run = build_run(config, ranks, check_inputs(config, ranks))
        for step in range(STEPS):
            lr = learning_rate(step, STEPS, config.optimizer.lr, config.schedule)
            run.learner.step(run.loader.next_step(), lr)
        run.close()
    measured, predicted = run.forecast.measured(), run.forecast.predict(run.plan).memory
    found = asdict(case) | {
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


def in_own_process(case: Case, arguments: Arguments, device: str) -> dict[str, Any]:
    """Measure one case in a fresh process. Raises: ValueError if it fails."""
    as_it_comes = device == "cpu" and arguments.allocator == "glibc"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "case.json"
        command = [
            *(("env", GLIBC_AS_IT_COMES) if as_it_comes else ()),
            *(sys.executable, str(Path(__file__).resolve()), "--here"),
            *("--data", str(arguments.data), "--device", device),
            *("--cases", case.name, "--out", str(out)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{case.name} failed: {done.stderr[-2000:]}")
        return read_json(out)


def header(arguments: Arguments, device: str) -> dict[str, Any]:
    """Where and of what the numbers are; taken before the measuring."""
    return provenance(["torch"]) | {
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "allocator": arguments.allocator if device == "cpu" else "torch's",
    }


def line_of(row: dict[str, Any]) -> str:
    """One case as a row of Markdown."""
    mib = {
        key: f"{row[key] / 2**20:,.0f}"
        for key in ("measured", "predicted", "reserved")
        if key in row
    }
    compiled = "compiled" if row["compiled"] else "eager"
    return (
        f"| {row['network']} | {row['micro_batch']} x {row['micro_steps']} | {row['dtype']} "
        f"| {compiled} | {mib['measured']} | {mib.get('reserved', '-')} | {mib['predicted']} "
        f"| {row['ratio'] - 1:+.1%} |"
    )


def main() -> None:
    """Measure every case in a process of its own, report."""
    silence_other_ranks()
    with user_errors():
        words = with_flags(Arguments, sys.argv[1:])
        arguments = tyro.cli(Arguments, args=words, description=__doc__)
        ranks = start(arguments.device)
        device = ranks.device.type
        cases = chosen(arguments, device)
        if arguments.here:
            write_json(arguments.out, measure(cases[0], arguments.data, ranks))
            return
        head = header(arguments, device)
        log.info("| network | micro-batch | dtype | step | MiB | reserved | predicted | off by |")
        log.info("|---|---|---|---|--:|--:|--:|--:|")
        rows = []
        for case in cases:
            rows.append(in_own_process(case, arguments, device))
            log.info("%s", line_of(rows[-1]))
            write_json(arguments.out, head | {"cases": rows})


if __name__ == "__main__":
    main()
