"""Run folders made from the golden one, with metric lines of a formula, without training."""

import json
import shutil
from pathlib import Path

from storage.atomic import write_json
from tests.runs import GOLDEN

RUN = GOLDEN.parent / "format_5" / "run"
TOKENS = 128  # of a step
MILLISECONDS = 2000.0


def made_run(
    path: Path,
    steps: int = 40,
    floor: float = 3.0,
    every: int = 10,
    state: str = "finished",
    settings: dict | None = None,
    **record,
) -> Path:
    """A run whose loss before update s is `floor` + 4 / (s + 1), validated every `every` steps.

    `settings` replaces settings by dotted name, `record` other parts of config.json.
    """
    path.mkdir(parents=True)
    config = json.loads((RUN / "config.json").read_text()) | record
    for key, value in {"steps": steps, **(settings or {})}.items():
        *groups, name = key.split(".")
        place = config["config"]
        for group in groups:
            place = place[group]
        place[name] = value
    config["run"]["steps"] = steps
    write_json(path / "config.json", config)
    write_json(path / "status.json", {"state": state, "step": steps, "reason": ""})
    lines = [json.dumps(made_line(step, steps, floor, every)) for step in range(steps + 1)]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return path


def made_line(step: int, steps: int, floor: float, every: int) -> dict:
    """The metric line of a step."""
    loss = floor + 4 / (step + 1)
    line: dict = {"step": step, "tokens": TOKENS * min(step + 1, steps)}
    if step < steps:
        line |= {"train/loss": loss + 0.1 * (-1) ** step, "speed/tokens_per_second": 64.0}
        line["speed/step_milliseconds"] = MILLISECONDS
    if step % every == 0 or step == steps:
        line |= {"val/loss": loss, "val/bits_per_byte": loss / 4}
    return line


def copied_run(path: Path, number: int = 5) -> Path:
    """A copy of the golden run of a format."""
    shutil.copytree(GOLDEN.parent / f"format_{number}" / "run", path)
    return path
