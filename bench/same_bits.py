"""Show that a run has the same bits on any number of ranks with `--reduction tree`.

    python bench/same_bits.py                  # continues where it was interrupted
    python bench/same_bits.py --networks demo --dtypes float32 --ranks 1 2 --steps 20

Each cell is an ordinary run of train/main.py on the CPU, one thread a rank. A row is one network in
one number format; its cells differ in the number of ranks. The last run of a row changes it three
times, each time after a kill. Compared are every loss, gradient norm and validation of the run, and
the weights and moments at its end, by sha256. The control is the same with `--reduction ddp`, where
they must differ, or the table would mean nothing.
Runs are kept in `--out`. Prints Markdown, and writes it and one JSON file.
"""

import hashlib
import json
import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench.provenance import RESULTS, ROOT, provenance
from data_prep.dataset.shards import open_data_set
from parallel.ranks import silence_other_ranks, user_errors
from parallel.warm_process import (
    WarmProcess,
    rank_environments,
    shared_environment,
    signal_all,
)
from storage.atomic import write_json, write_text
from storage.digest import file_sha256
from storage.json_lines import column, read_last_line, read_metrics
from storage.option_values import check_at_least
from storage.run_folder import RunFolder
from storage.script_options import parse_options

_SCRIPT = ROOT / "train" / "main.py"
_MODULES = ("torch._dynamo", "torch.nn.parallel", "train.main", "torch.utils.tensorboard")
# Two ranks add a sum in either order with the same result. What only four or more show is the rest.
_CHANGING = (4, 2, 8, 1)
# At each change: all ranks are killed, or one, after which the others save the step they are at.
_KILLED = ("all", "one", "all")
_POLL_SECONDS = 0.2
_COMPARED = ("train/loss", "train/grad_norm", "val/loss", "val/bits_per_byte", "data/digest")

log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Train on several numbers of ranks and compare the bits."""

    data: Path = Path("data/demo")
    """Data set folder."""
    out: Path = Path("runs/same_bits")
    """Folder of the runs; those that have finished are not made again."""
    results: Path = RESULTS / "same_bits.json"
    """Result file; the table is written beside it."""
    networks: tuple[Literal["gpt2-demo", "demo"], ...] = ("gpt2-demo", "demo")
    """Presets to train. gpt2-demo: GPT-2's network with AdamW; demo: `modern`'s with Muon."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Number formats of the matrix products."""
    ranks: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of ranks."""
    steps: int = 200
    """Steps of each run."""
    control_steps: int = 50
    """Steps of each run of the control, in float32. 0: no control."""
    batch_tokens: int = 1024
    """Tokens of one step."""
    micro_batch: int = 1
    """Windows of one forward pass. It belongs to the definition of the bits."""

    def __post_init__(self) -> None:
        check_at_least("steps", self.steps, 8)
        check_at_least("control_steps", self.control_steps, 0)
        for number in self.ranks:
            check_at_least("ranks", number, 1)


@dataclass(frozen=True)
class Bits:
    """What a run came to, as sha256."""

    curve: str
    """Loss, gradient norm and data of every step, and all validations."""
    weights: str
    """The file of the weights after the last step."""
    moments: str
    """The file of the optimizer's state after the last step."""

    @property
    def short(self) -> str:
        """Eight digits that stand for all three."""
        return hashlib.sha256((self.curve + self.weights + self.moments).encode()).hexdigest()[:8]


def bits_of(folder: Path) -> Bits:
    """The digests of a finished run."""
    run = RunFolder(folder)
    lines = [{key: line.get(key) for key in _COMPARED} for line in read_metrics(run.metrics)]
    curve = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    last = run.checkpoints / "latest"
    files = (file_sha256(last / f"{name}.safetensors") for name in ("model", "optimizer"))
    return Bits(curve, *files)


def difference(one: Path, other: Path) -> dict[str, Any]:
    """The first step whose loss differs between two runs, and the largest relative difference."""
    losses = [column(read_metrics(RunFolder(path).metrics), "train/loss") for path in (one, other)]
    pairs = list(zip(*losses[0], losses[1][1], strict=True))
    return {
        "first_step": next((step for step, a, b in pairs if a != b), None),
        "largest_relative_difference": max(abs(a - b) / abs(a) for _, a, b in pairs),
    }


@dataclass(frozen=True)
class Row:
    """One network in one number format, summed in one way."""

    network: str
    dtype: str
    reduction: Literal["tree", "ddp"]
    steps: int

    @property
    def name(self) -> str:
        return f"{self.network}_{self.dtype}_{self.reduction}_{self.steps}"

    def words(self, arguments: Arguments, out: Path) -> list[str]:
        """The command line of train/main.py; half-way and at the end it validates."""
        half = str(self.steps // 2)
        return [
            *(self.network, "--data", str(arguments.data.absolute()), "--out", str(out)),
            *("--reduction", self.reduction, "--dtype", self.dtype, "--steps", str(self.steps)),
            *("--batch-tokens", str(arguments.batch_tokens)),
            *("--micro-batch", str(arguments.micro_batch), "--device", "cpu", "--threads", "1"),
            *("--eval.every", half, "--eval.val-tokens", "4096", "--eval.tasks-every", "0"),
            *("--sample.every", "0", "--save.every", str(max(self.steps // 10, 1))),
            *("--save.every-minutes", "0", "--no-rehearsal"),
        ]


class _Runner:
    """Starts runs of one thread a rank, in forks of a process that has imported torch."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._environment = shared_environment(1) | {"OMP_NUM_THREADS": "1"}
        self._warm = WarmProcess(_MODULES, ROOT, self._environment)
        out.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        self._warm.close()

    def run(self, words: list[str], ranks: int, name: str, until: int = 0, kill: str = "") -> Path:
        """Run to the end, or until a step at which "all" ranks or "one" are killed.

        Raises: ValueError with the end of the run's output if it fails.
        """
        folder, printed = RunFolder(self._out / name), self._out / f"{name}.log"
        if folder.is_finished() or (kill and _steps_done(folder) >= until):
            return folder.path
        with open(os.devnull) as nothing, printed.open("ab") as file:
            environments = rank_environments(self._environment, ranks)
            streams = (nothing, file, file)
            processes = self._warm.start((str(_SCRIPT), *words), streams, ROOT, environments)
            codes = self._end_of(processes, folder, until, kill)
        if not kill and any(codes):
            raise ValueError(f"{name} failed: {printed.read_text()[-1000:]}")
        return folder.path

    def _end_of(self, processes: list[int], folder: RunFolder, until: int, kill: str) -> list[int]:
        """The exit codes of a run, of which ranks are killed at step `until`."""
        while kill and _steps_done(folder) < until:
            if (codes := self._warm.wait(0)) is not None:
                return codes
            time.sleep(_POLL_SECONDS)
        if kill:
            signal_all(processes if kill == "all" else processes[-1:], signal.SIGKILL)
        codes = self._warm.wait()
        assert codes is not None
        return codes


def _steps_done(folder: RunFolder) -> int:
    line = read_last_line(folder.metrics)
    return 0 if line is None else int(line.get("step", 0))


def _changing_run(runner: _Runner, row: Row, arguments: Arguments) -> Path:
    """One run whose number of ranks changes, each time after a kill."""
    name = f"{row.name}_changing"
    words = row.words(arguments, arguments.out / name)
    for change, kill in enumerate(_KILLED):
        until = (change + 1) * row.steps // len(_CHANGING)
        runner.run(words, _CHANGING[change], name, until, kill)
    return runner.run(words, _CHANGING[-1], name)


def _measured(runner: _Runner, row: Row, arguments: Arguments) -> dict[str, Any]:
    """All runs of a row, and whether they have the same bits."""
    folders: dict[str, Path] = {}
    for ranks in arguments.ranks:
        name = f"{row.name}_{ranks}"
        folders[str(ranks)] = runner.run(row.words(arguments, arguments.out / name), ranks, name)
    if row.reduction == "tree":
        folders[" → ".join(map(str, _CHANGING))] = _changing_run(runner, row, arguments)
    bits = {name: bits_of(folder) for name, folder in folders.items()}
    first, *others = folders
    return asdict(row) | {
        "bits": {name: asdict(found) | {"short": found.short} for name, found in bits.items()},
        "same": len(set(bits.values())) == 1,
        "differences": {name: difference(folders[first], folders[name]) for name in others},
    }


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The cells of each row, and of the control where it first differs, as Markdown."""
    proved = [row for row in rows if row["reduction"] == "tree"]
    lines = []
    if proved:
        names = list(proved[0]["bits"])
        lines += [f"| network | numbers | {' | '.join(names)} | same bits |"]
        lines += ["| --- " * (len(names) + 3) + "|"]
    for row in proved:
        cells = (f"`{found['short']}`" for found in row["bits"].values())
        same = "yes" if row["same"] else "**NO**"
        lines.append(f"| {row['network']} | {row['dtype']} | {' | '.join(cells)} | {same} |")
    control = [row for row in rows if row["reduction"] == "ddp"]
    if control:
        lines += ["", "The control, `--reduction ddp`, against its first number of ranks:", ""]
        lines += ["| network | steps | ranks | first loss that differs | largest difference |"]
        lines += ["| --- " * 5 + "|"]
    for row in control:
        for name, found in row["differences"].items():
            step, largest = found["first_step"], found["largest_relative_difference"]
            first = "none" if step is None else f"of step {step}"
            where = f"{row['network']} | {row['steps']} | {name}"
            lines.append(f"| {where} | {first} | {largest:.1e} |")
    return "\n".join(lines)


def main() -> None:
    """Make the runs that are missing, compare all, print the tables, write them."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        open_data_set(arguments.data)
        kinds = [(network, dtype) for network in arguments.networks for dtype in arguments.dtypes]
        plan = [Row(network, dtype, "tree", arguments.steps) for network, dtype in kinds]
        if arguments.control_steps:
            networks, steps = arguments.networks, arguments.control_steps
            plan += [Row(network, "float32", "ddp", steps) for network in networks]
        head = provenance(("torch",)) | {"threads": 1, "batch_tokens": arguments.batch_tokens}
        head |= {"micro_batch": arguments.micro_batch}
        runner, rows = _Runner(arguments.out), []
        try:
            for row in plan:
                rows.append(_measured(runner, row, arguments))
                log.info("%s: %s", row.name, "the same bits" if rows[-1]["same"] else "they differ")
                write_json(arguments.results, head | {"rows": rows})
        finally:
            runner.close()
        text = table_of(rows)
        log.info("%s", text)
        write_text(arguments.results.with_suffix(".md"), text + "\n")


if __name__ == "__main__":
    main()
