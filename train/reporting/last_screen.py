"""Below the closing table: samples of three steps, and what can be done next."""

import re
import shlex
import sys
from pathlib import Path
from textwrap import wrap
from typing import Any
from unicodedata import east_asian_width

from storage.byte_pairs import END_OF_TEXT
from storage.json_lines import column
from storage.terminal.printable import printable
from train.reporting.best_checkpoint import better_checkpoint, why_it_stopped
from train.run import Run

_WIDTH = 80
_MARGIN = "    "
_SAMPLE_LINES = 3
_CURVE_POINTS = 4
_DEMO = "demo"  # the data set of `make run`
_PROJECT = Path(__file__).parents[2]
_NEXT_PROMPT = re.compile(r"\n\n> ")


def curve_end(lines: list[dict[str, Any]]) -> str:
    """The last validation losses, each with its step; empty if there are none."""
    points = list(zip(*column(lines, "val/loss"), strict=True))[-_CURVE_POINTS:]
    return ", ".join(f"{loss:.3f} ({step:,})" for step, loss in points)


def sample_files(folder: Path) -> list[Path]:
    """The files of samples in a folder, by step."""
    found = folder.glob("step_*.txt") if folder.is_dir() else ()
    return sorted((path for path in found if _step(path) is not None), key=lambda p: _step(p) or 0)


def _step(path: Path) -> int | None:
    found = re.fullmatch(r"step_(\d+)", path.stem)
    return int(found[1]) if found else None


def shown_samples(folder: Path) -> str:
    """The first sample of the first, the middle and the last step that has some, in short."""
    files = sample_files(folder)
    chosen = sorted({0, len(files) // 2, len(files) - 1}) if files else []
    return "\n".join(_shown_sample(files[number]) for number in chosen)


def _shown_sample(path: Path) -> str:
    page = path.read_text(encoding="utf-8", errors="replace").removeprefix("> ")
    prompt, _, text = _NEXT_PROMPT.split(page)[0].partition("\n")
    begun = "" if prompt == END_OF_TEXT else f"[{prompt}] "
    one_line = " ".join(printable(begun + text).split())
    wide = any(east_asian_width(character) in "WF" for character in one_line)
    lines = wrap(
        one_line,
        _WIDTH // 2 if wide else _WIDTH,
        initial_indent=_MARGIN,
        subsequent_indent=_MARGIN,
        max_lines=_SAMPLE_LINES,
        placeholder=" …",
    )
    return "\n".join([f"  step {_step(path):,}", *lines])


def next_commands(run: Run, lines: list[dict[str, Any]]) -> str:
    """Commands that work as they stand, each below what it does."""
    python, folder = Path(sys.executable), shlex.quote(str(run.folder.path))
    generate, node = _PROJECT / "eval/generate.py", _PROJECT / "launch/node.sh"
    tensorboard = _shown(python.with_name("tensorboard"))
    subject = shlex.quote(str(better_checkpoint(run) or run.folder.path))
    told = [
        ("type prompts", f"{_shown(python)} {_shown(generate)} --checkpoint {subject}"),
        ("see the curves", f"{tensorboard} --logdir {folder}"),
    ]
    _, losses = column(lines, "val/loss")
    if losses and losses[-1] <= min(losses):
        longer = f"--continue {folder} --steps {2 * run.steps} --allow steps"
        told.append(("train twice as long", f"{_shown(node)} {longer}"))
    if run.config.data[0].name == _DEMO:
        own_text = _PROJECT / "launch/own_text.sh"
        told.append(("your own text", f"{_shown(own_text)} story.txt"))
    if why_it_stopped(run):
        longer = f"--continue {folder} --stop-when-worse {2 * (run.config.stop_when_worse or 1)}"
        told.append(("train on", f"{_shown(node)} {longer} --allow stop_when_worse"))
    width = max(len(what) for what, _ in told)
    return "\n".join(f"  {what:<{width}}  {command}" for what, command in told)


def _shown(path: Path) -> str:
    """A program as it is typed in the present folder; one that is missing, by its name."""
    if not path.exists():
        return path.name
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
