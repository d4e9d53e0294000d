"""Measure everything that a short time on one GPU has to answer, in one call.

    python bench/gpu/measure.py --kit gpu_kit --out results          # the first call
    python bench/gpu/measure.py --kit gpu_kit --out results --call 2 # the second
    python bench/gpu/measure.py --kit gpu_kit --device cpu       # toy sizes: does it run?

`--kit` is the folder that prepare.py packed. The parts (bench/gpu/parts.py) run in order of worth,
each with a limit, until `--seconds` are over. `--out` gets `gpu_N.json`, written after every part,
so that a cut-off loses only the part that runs; `gpu_N.md`, every number beside its expectation;
the output of all parts; and the profiler's trace. The two of call N belong into bench/results/.
"""

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bench.gpu.comparison import table_of
from bench.gpu.findings import findings, last_lines
from bench.gpu.parts import CALLS, Part, part_named
from bench.provenance import ROOT, device_name, provenance
from parallel.device_choice import wants_cuda
from parallel.ranks import silence_other_ranks, user_errors
from storage.atomic import read_json, write_json, write_text
from storage.option_values import check_output_file
from storage.script_options import parse_options

_LEAST_SECONDS = 15  # a part with less time left would measure nothing
_GRACE_SECONDS = 8  # from SIGTERM, at which a run saves, to SIGKILL

log = logging.getLogger("train")

_Runner = Callable[[list[str], dict[str, str], float, Path], int]
"""Runs a command with more variables for at most some seconds, its output appended to a file."""


@dataclass(frozen=True)
class Arguments:
    """Run the parts of one call and write what they found."""

    kit: Path = Path("gpu_kit")
    """Folder that bench/gpu/prepare.py packed."""
    out: Path = Path("gpu_results")
    """Folder for the results."""
    runs: Path = Path("gpu_runs")
    """Folder for the training runs, which may be large; on a machine that is still there, a later
    call finds their checkpoints in it."""
    call: int = 1
    """1 or 2: which list of parts."""
    parts: tuple[str, ...] = ()
    """Parts by name, in this order, instead of a list; default: all of `--call`."""
    seconds: float = 550
    """Seconds for all parts together."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: every part at a toy size, without expectations."""

    def __post_init__(self) -> None:
        if self.call not in CALLS:
            raise ValueError(
                f"call={self.call} is not known; give one of {', '.join(map(str, CALLS))}"
            )
        if self.seconds <= 0:
            raise ValueError(f"seconds={self.seconds} must be above 0")
        for name in self.parts:
            part_named(name)

    @property
    def chosen(self) -> Sequence[Part]:
        """The parts to run, in order."""
        return [part_named(name) for name in self.parts] or CALLS[self.call]


def run_part(words: list[str], variables: dict[str, str], seconds: float, output: Path) -> int:
    """The exit code of `python WORDS`, which is ended after `seconds`; 124 says that it was.

    Its output is appended to `output`. Whatever it started ends with it.
    """
    env = ["env", *(f"{name}={value}" for name, value in variables.items())]
    with output.open("ab") as file:
        process = subprocess.Popen(
            [*env, sys.executable, "-u", *words],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)
            return 124
        finally:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a command and everything in its session."""
    with suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, number)


def _ending(row: dict[str, Any]) -> str:
    return f"exit code {row['exit_code']} after {row['seconds']:.0f} s"


class _Call:
    """The parts of one call, and the report that grows with them."""

    def __init__(self, arguments: Arguments, gpu: str, run: _Runner) -> None:
        self.arguments = arguments
        self.gpu = gpu
        self.run = run
        self.toy = arguments.device == "cpu"
        self.until = time.monotonic() + arguments.seconds
        self.output = arguments.out / f"output_{arguments.call}.txt"
        folders = {"kit": arguments.kit, "runs": arguments.runs, "out": arguments.out}
        self.folders = {name: str(folder.resolve()) for name, folder in folders.items()}
        record = arguments.kit / "kit.json"
        kit = read_json(record) if record.exists() else {}
        self.report: dict[str, Any] = provenance(("torch", "numpy", "triton", "tyro"))
        if self.report["commit"] == "unknown":  # the files travelled without git's folder
            self.report["commit"] = f"{kit.get('commit', 'unknown')} (of the kit)"
        self.report |= {"kit": kit, "seconds": arguments.seconds, "parts": []}

    def measure(self, part: Part) -> None:
        """Run a part if there is time and its checkpoint, and add what it found."""
        row: dict[str, Any] = {"name": part.name, "answers": part.answers}
        self.report["parts"].append(row)
        left = min(part.seconds, self.until - time.monotonic())
        needed = self.arguments.runs / part.needs / "checkpoints" / "latest"
        words = part.words(self.folders, self.toy)
        files = [Path(word) for word in words if word.startswith(self.folders["kit"])]
        lacking = [file.name for file in files if not file.exists()]
        if left < _LEAST_SECONDS and not self.toy:
            row["left_out"] = "no time was left"
        elif part.needs and not needed.exists():
            row["left_out"] = f"there is no checkpoint of {part.needs}"
        elif lacking:
            row["left_out"] = f"the kit has no {lacking[0]}"
        else:
            row["left_out"] = "the call ended while it ran"
            self.write()
            self._run(part, words, row, left)
        self.write()
        log.info("%s: %s", part.name, row.get("left_out") or self._result(row))

    def _run(self, part: Part, words: list[str], row: dict[str, Any], seconds: float) -> None:
        if not part.needs:  # what an earlier call left would be continued
            shutil.rmtree(self.arguments.runs / part.name, ignore_errors=True)
        self.output.touch()
        begin = self.output.stat().st_size
        began = time.monotonic()
        code = self.run(words, dict(part.variables), seconds, self.output)
        row |= {"exit_code": code, "seconds": round(time.monotonic() - began, 1)}
        shown = part.words({name: name.upper() for name in self.folders}, self.toy)
        row["command"] = shlex.join([*(f"{k}={v}" for k, v in part.variables.items()), *shown])
        with self.output.open("rb") as file:
            file.seek(begin)
            printed = file.read().decode(errors="replace")
        row["measured"] = findings(part, words, self.arguments.out, printed)
        if code != 0:
            row["last_lines"] = last_lines(printed)
        for trace in (self.arguments.runs / part.name).glob("profile_*.json.gz"):
            shutil.copy(trace, self.arguments.out)
        del row["left_out"]

    @staticmethod
    def _result(row: dict[str, Any]) -> str:
        speed = row["measured"].get("tokens_per_second")
        said = "" if speed is None else f", {speed:,.0f} tokens/s"
        return f"{_ending(row)}{said}"

    def write(self) -> None:
        """Write the report and its table as they are now."""
        call = self.arguments.call
        write_json(self.arguments.out / f"gpu_{call}.json", self.report)
        write_text(self.arguments.out / f"gpu_{call}.md", self.table())

    def table(self) -> str:
        """Every number beside its expectation, and what was not measured."""
        report = self.report
        failed = [
            f"- {row['name']}: {row.get('left_out') or _ending(row)}"
            for row in report["parts"]
            if "left_out" in row or row["exit_code"] != 0
        ]
        head = f"{self.gpu}, torch {report['versions']['torch']}, commit {report['commit']}"
        lines = ["", "", "Not measured, or not to its end:", "", *failed] if failed else []
        missing = "\n".join(lines)
        return f"{head}\n\n{table_of(report['parts'], self.gpu)}{missing}\n"


def measured_call(arguments: Arguments, gpu: str, run: _Runner = run_part) -> dict[str, Any]:
    """Run the parts and return the report; `gpu` is the name of the card."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    call = _Call(arguments, gpu, run)
    for part in arguments.chosen:
        call.measure(part)
    log.info("\n%s", call.table())
    return call.report


def _check_folders(arguments: Arguments) -> None:
    """Raises: ValueError if the kit is none, or nothing can be written to the other folders."""
    check_output_file("--out", arguments.out / "gpu.json")
    check_output_file("--runs", arguments.runs / "reference" / "config.json")
    if not (arguments.kit / "data" / "manifest.json").is_file():
        raise ValueError(f"--kit {arguments.kit} holds no data; make it with bench/gpu/prepare.py")


def main() -> None:
    """Run the parts of a call; exit code 1 if one failed."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        _check_folders(arguments)
        device = torch.device("cuda" if wants_cuda(arguments.device, 1) else "cpu")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and so ends the part
        report = measured_call(arguments, device_name(device))
        if any(part.get("exit_code") for part in report["parts"]):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
