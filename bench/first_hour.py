"""Compares a first run on one's own text with nanoGPT's quick start.

    git clone https://github.com/karpathy/nanoGPT peers/nanoGPT
    python bench/first_hour.py --text tinyshakespeare.txt --nanogpt peers/nanoGPT

nanoGPT runs the commands of its README, ours is launch/own_text.sh; both keep the last tenth of the
characters for validation. From the first command on are measured: the first printed loss, the
first sample whose words are words of the text, bits per byte of the held-out text as it falls and
at the end. The machine must be idle: threads of a process that wait for cores burn them.
"""

import logging
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

from bench.process_session import Session
from bench.provenance import RESULTS, ROOT, provenance
from data_prep.dataset.shards import open_data_set
from parallel.ranks import silence_other_ranks, user_errors
from storage.atomic import read_json, write_json, write_text
from storage.json_lines import read_metrics
from storage.script_options import parse_options

_OUT = RESULTS / "first_hour.json"
# README of https://github.com/karpathy/nanoGPT at 3adf61e: "I only have a macbook".
_DATA = "data/shakespeare_char"
_SHAPE = ["--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128"]
_STEPS = ["--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"]
_CPU = ["--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1"]
_TRAIN = ["train.py", "config/train_shakespeare_char.py", *_CPU, *_SHAPE, *_STEPS]
_SAMPLE = ["sample.py", "--out_dir=out-shakespeare-char", "--device=cpu", "--num_samples=1"]
# Its own estimate once more, of so many random windows that the error of the mean is small.
_MEASURE = ["--init_from=resume", "--eval_only=True", "--eval_iters=400"]
_VAL_LINE = re.compile(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)")
_LOSS_LINE = re.compile(r"loss\D{0,12}\d+\.\d|^ *\d+/\d+ +\d+\.\d")
_WORD = re.compile(r"[^\W\d_]+")
_PLAUSIBLE = 0.9  # of a sample's words
_POLL_SECONDS = 0.5

log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Compare the first run on a text with nanoGPT's quick start."""

    text: Path
    """Text file, for example tinyshakespeare."""
    nanogpt: Path
    """Checkout of github.com/karpathy/nanoGPT; its data folder gets the text."""
    minutes: float = 3.0
    """Time after which bits per byte are compared, counted from the first command."""
    out: Path = _OUT
    """Result file; a table is written beside it."""

    def check(self) -> None:
        """Raises: ValueError if text or checkout are not there."""
        if not self.text.is_file():
            raise ValueError(f"--text {self.text} is no file; give a text file")
        if not (self.nanogpt / "train.py").is_file():
            raise ValueError(f"--nanogpt {self.nanogpt} has no train.py; give nanoGPT's checkout")


@dataclass
class Story:
    """What happened in the commands of one side; moments are seconds and CPU seconds so far."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    first_loss: dict[str, float] | None = None
    points: list[dict[str, float]] = field(default_factory=list)
    """Validation: step, bits per byte, moment."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Text, share of its words that are words of the original, moment."""
    final_bits_per_byte: float = math.nan
    last_words: list[str] = field(default_factory=list)

    def moment(self, began: float, session: Session) -> dict[str, float]:
        """Now."""
        return {
            "seconds": round(self.seconds + monotonic() - began, 1),
            "cpu_seconds": round(self.cpu_seconds + session.cpu_seconds, 1),
        }


def run(
    story: Story,
    command: list[str],
    folder: Path,
    on_line: Callable[[str], dict[str, float] | None] = lambda _: None,
    look: Callable[[], Iterator[tuple[str, dict[str, Any]]]] = lambda: iter(()),
) -> list[str]:
    """Run a command and add what happens to the story; returns its lines.

    `on_line` gives the validation that a line prints; `look` what has appeared on disk, as
    ("points" or "samples", entry). Raises: RuntimeError if the command fails.
    """
    began = monotonic()
    process = subprocess.Popen(
        ["env", "PYTHONUNBUFFERED=1", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    session, lines = Session(process.pid, _POLL_SECONDS), list[str]()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            now = story.moment(began, session)
            if story.first_loss is None and _LOSS_LINE.search(line):
                story.first_loss = now
            if point := on_line(line):
                story.points.append(point | now)
        process.stdout.close()

    reader = Thread(target=read)
    reader.start()
    while True:
        running = process.poll() is None
        for kind, entry in look():
            getattr(story, kind).append(entry | story.moment(began, session))
        if not running:
            break
        sleep(_POLL_SECONDS)
    reader.join()
    story.cpu_seconds += session.end()
    story.seconds += monotonic() - began
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(lines[-20:]))
    return lines


def known_words(sample: str, text: str) -> float:
    """The share of a sample's words that are words of the text; lines with `> ` are prompts."""
    written = "\n".join(line for line in sample.split("\n") if not line.startswith("> "))
    words, known = _WORD.findall(written), set(_WORD.findall(text))
    return sum(word in known for word in words) / max(len(words), 1)


def _theirs(arguments: Arguments, text: str) -> Story:
    """nanoGPT's quick start."""
    folder, story, python = arguments.nanogpt, Story(), sys.executable
    bytes_per_character = _held_out_bytes_per_character(text)

    def validation(line: str) -> dict[str, float] | None:
        found = _VAL_LINE.match(line)
        bits = float(found[2]) / math.log(2) / bytes_per_character if found else 0
        return {"step": int(found[1]), "bits_per_byte": bits} if found else None

    for name in ("train.bin", "val.bin", "meta.pkl"):
        (folder / _DATA / name).unlink(missing_ok=True)
    shutil.copyfile(arguments.text, folder / _DATA / "input.txt")
    run(story, [python, f"{_DATA}/prepare.py"], folder)
    lines = run(story, [python, *_TRAIN], folder, validation)
    said = run(story, [python, *_SAMPLE], folder)
    sample = "\n".join(said[said.index("") + 1 :] if "" in said else said).rstrip("- \n")
    story.samples.append(
        {"text": sample, "known_words": known_words(sample, text)}
        | {"seconds": round(story.seconds, 1), "cpu_seconds": round(story.cpu_seconds, 1)}
    )
    story.last_words = [*lines[-3:], *said[-12:]]
    again = Story()
    run(again, [python, *_TRAIN, *_MEASURE], folder, validation)
    story.final_bits_per_byte = again.points[-1]["bits_per_byte"]
    return story


def _held_out_bytes_per_character(text: str) -> float:
    held_out = text[int(len(text) * 0.9) :]
    return len(held_out.encode()) / len(held_out)


def _ours(arguments: Arguments, text: str, folder: Path) -> Story:
    """launch/own_text.sh, in an empty folder."""
    story, seen = Story(), set[str]()
    (folder / "story.txt").write_text(text, encoding="utf-8", newline="")

    def look() -> Iterator[tuple[str, dict[str, Any]]]:
        for line in read_metrics(folder / "runs/story/metrics.jsonl"):
            if "val/bits_per_byte" in line and f"step {line['step']}" not in seen:
                seen.add(f"step {line['step']}")
                yield "points", {"step": line["step"], "bits_per_byte": line["val/bits_per_byte"]}
        for path in sorted((folder / "runs/story/samples").glob("step_*.txt")):
            if path.name not in seen:
                seen.add(path.name)
                sample = path.read_text(encoding="utf-8")
                yield "samples", {"text": sample, "known_words": known_words(sample, text)}

    lines = run(story, [str(ROOT / "launch/own_text.sh"), "story.txt"], folder, look=look)
    story.last_words = lines[-45:]
    story.final_bits_per_byte = _measured(folder)
    return story


def _measured(folder: Path) -> float:
    """Bits per byte of all whole windows of the held-out text."""
    checkpoint = folder / "runs/story/checkpoints/latest"
    context = read_json(checkpoint / "model.json")["config"]["context_length"]
    tokens = open_data_set(folder / "data/own/story").manifest.val.tokens
    whole = (tokens - 1) // context * context
    command = [sys.executable, str(ROOT / "eval/main.py"), "--checkpoint", str(checkpoint)]
    command += ["--tasks", "val_loss", "--val-tokens", str(whole), "--json", "numbers.json"]
    run(Story(), command, folder)
    return read_json(folder / "numbers.json")["val/bits_per_byte"]


def at_time(story: dict[str, Any], clock: str, limit: float) -> float:
    """The last bits per byte that were measured by then on this clock; NaN if none."""
    done = [point["bits_per_byte"] for point in story["points"] if point[clock] <= limit]
    return done[-1] if done else math.nan


def rows(sides: dict[str, dict[str, Any]], minutes: float, cores: int) -> list[list[str]]:
    """The table: a name, and what each side has."""

    def moment(found: dict[str, float] | None) -> str:
        return f"{found['seconds']:.0f} s ({found['cpu_seconds']:.0f})" if found else "none"

    def plausible(story: dict[str, Any]) -> dict[str, float] | None:
        return next((s for s in story["samples"] if s["known_words"] >= _PLAUSIBLE), None)

    def share(story: dict[str, Any]) -> str:
        return f"{story['samples'][-1]['known_words']:.0%}" if story["samples"] else "none"

    per_core = cores * minutes * 60
    named: dict[str, Callable[[dict[str, Any]], str]] = {
        "first printed loss": lambda s: moment(s["first_loss"]),
        f"first sample of {_PLAUSIBLE:.0%} known words": lambda s: moment(plausible(s)),
        "last sample: known words": share,
        f"bits per byte after {minutes:g} minutes": lambda s: (
            f"{at_time(s, 'seconds', minutes * 60):.3f}"
        ),
        f"bits per byte after {per_core:g} CPU seconds": lambda s: (
            f"{at_time(s, 'cpu_seconds', per_core):.3f}"
        ),
        "bits per byte at the end, all of the held-out text": lambda s: (
            f"{s['final_bits_per_byte']:.3f}"
        ),
        "all commands": moment,
    }
    return [[name, *(value(story) for story in sides.values())] for name, value in named.items()]


def markdown(report: dict[str, Any]) -> str:
    """The table and both samples."""
    sides, settings = report["sides"], report["settings"]
    lines = [
        "# The first hour beside nanoGPT's quick start",
        "",
        f"Text: {settings['text']}. {report['hardware']}, load {report['load']:.1f} before the "
        "start. In brackets: CPU seconds of all processes.",
        "",
        "| | " + " | ".join(sides) + " |",
        "| --- |" + " --- |" * len(sides),
        *("| " + " | ".join(row) + " |" for row in report["table"]),
    ]
    for name, story in sides.items():
        said = "\n".join(story["last_words"])
        lines += ["", f"The last words of {name}:", "", "```", said, "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run both sides, write the table."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        arguments.check()
        report = provenance(("torch", "numpy"))
        text = arguments.text.read_text(encoding="utf-8")
        report["settings"] = {"text": arguments.text.name, "bytes": len(text.encode())}
        sides = report["sides"] = {}
        with tempfile.TemporaryDirectory() as folder:
            sides["ours"] = asdict(_ours(arguments, text, Path(folder).resolve()))
        write_json(arguments.out, report)
        sides["nanoGPT"] = asdict(_theirs(arguments, text))
        report["table"] = rows(sides, arguments.minutes, os.cpu_count() or 1)
        write_json(arguments.out, report)
        write_text(arguments.out.with_suffix(".md"), markdown(report))
        log.info("%s", markdown(report))


if __name__ == "__main__":
    main()
