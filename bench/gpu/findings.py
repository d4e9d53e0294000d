"""What a part of the measurements found, read from the files that its command left."""

import re
import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.gpu.parts import Part
from bench.gpu.step_trace import milliseconds_of_a_step
from storage.atomic import read_json
from storage.json_lines import read_lines, read_metrics

_SETTLING_STEPS = 5  # of a start: compilation, first allocations
_GIB = 2**30
_LAST_LINES = 15  # of the output of a part that failed
_TRACE = re.compile(r"profile_(\d+)_(\d+)\.json\.gz")


def findings(part: Part, words: list[str], out: Path, output: str) -> dict[str, Any]:
    """The numbers of a part that ended. `words` is its command, `output` what it printed.

    What a part that failed did not write is left out.
    """
    if words[0] == "train/main.py":
        return _of_training(Path(words[words.index("--out") + 1]), resumed=part.name == "resume")
    if words[0] == "bench/gpu/micro.py":
        return _of_micro(out / "micro.jsonl")
    if words[0] == "eval/main.py":
        with suppress(FileNotFoundError):
            return dict(read_json(out / "hellaswag.json"))
        return {}
    if words[0] == "eval/generate.py":
        speeds = re.findall(r"tokens in [\d.]+ s: ([\d.]+) tokens/s", output)
        return {"tokens_per_second": float(speeds[-1])} if speeds else {}
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", output)
    return {"failed": 0} | {outcome: int(number) for number, outcome in counts} if counts else {}


def last_lines(output: str) -> list[str]:
    """The end of what a part printed, to see why it failed."""
    return output.splitlines()[-_LAST_LINES:]


def _of_training(run: Path, resumed: bool) -> dict[str, Any]:
    """Speed, memory and losses of a run, and where the time of a step goes if it was traced."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "train/loss" in line]
    began = [line["started_at_step"] for line in read_lines(run / "starts.jsonl")]
    if not lines or not began:
        return {}
    lines = [line for line in lines if not resumed or line["step"] >= began[-1]]
    if not lines:
        return {}
    traces = {file: _steps(file) for file in sorted(run.glob("profile_*.json.gz"))}
    profiled = {step for steps in traces.values() for step in steps}
    settled = _SETTLING_STEPS if len(lines) > 2 * _SETTLING_STEPS else 1
    timed = [line for line in lines[settled:] if line["step"] not in profiled] or lines[-1:]
    found: dict[str, Any] = {
        "steps_timed": len(timed),
        **_spread("tokens_per_second", [line["speed/tokens_per_second"] for line in timed]),
        **_spread("step_milliseconds", [line["speed/step_milliseconds"] for line in timed]),
        "first_step_seconds": lines[0]["speed/step_milliseconds"] / 1000,
        "first_loss": lines[0]["train/loss"],
        "last_loss": lines[-1]["train/loss"],
        "last_step": lines[-1]["step"],
    }
    for line in lines:
        for name in ("peak_memory", "predicted_memory"):
            if (value := line.get(f"speed/{name}_bytes")) is not None:
                found[f"{name}_gib"] = value / _GIB
    with suppress(OSError, ValueError, KeyError):
        kept = ("attention", "micro_batch", "grad_accum_steps", "compiled", "dtype")
        settings = read_json(run / "config.json")["run"]
        found |= {name: settings[name] for name in kept if name in settings}
    if not resumed:
        for file, steps in traces.items():
            found["trace"] = _of_trace(file, len(steps))
    return found


def _steps(trace: Path) -> range:
    """The steps that a trace covers, by its name."""
    match = _TRACE.fullmatch(trace.name)
    return range(int(match[1]), int(match[2])) if match else range(0)


def _of_trace(file: Path, steps: int) -> dict[str, Any]:
    try:
        return milliseconds_of_a_step(file, steps)
    except (OSError, EOFError, ValueError, KeyError) as error:
        return {"error": str(error)[:200]}


def _spread(name: str, values: list[float]) -> dict[str, float]:
    """Median, smallest and largest value."""
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def _of_micro(facts: Path) -> dict[str, Any]:
    """All facts by name, and the sum of a step's matrix products."""
    found: dict[str, Any] = {line.pop("what"): line for line in read_lines(facts)}
    products = [
        values["of_a_step_ms"]
        for what, values in found.items()
        if what.startswith("product ") and "of_a_step_ms" in values
    ]
    if len(products) == sum(what.startswith("product ") for what in found) and products:
        found["products_of_a_step_ms"] = sum(products)
    return found
