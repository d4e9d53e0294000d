"""Kill a data preparation at random moments and compare its bytes with an undisturbed one.

    python bench/kill_prepare.py --kills 50

Each kill sends SIGKILL to the whole process group, workers included. After the last kill, the
preparation runs to its end. Prints a table and writes `results/kill_prepare.json`. The exit code is
1 if the bytes differ, if temporary folders are left, or if it ended before all kills.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.provenance import RESULTS, ROOT, provenance
from storage.atomic import write_json
from storage.script_options import parse_options

_WORDS = ["a", "river", "of", "light", "runs", "under", "old", "stone", "while", "birds", "wait"]
_MAX_LIFE_SECONDS = 5.0  # from start to kill


@dataclass(frozen=True)
class KillOptions:
    """Kill a preparation at random moments and compare its bytes with an undisturbed one."""

    kills: int = 50
    """Number of kills."""
    megabytes: float = 24.0
    """Size of all files of the synthetic source."""
    files: int = 12
    """Files of the source, alternately JSON lines and text."""
    shard_tokens: int = 25_000
    """Tokens of a shard. Small shards give many units of work."""
    workers: int = 2
    """Worker processes of the preparation."""
    seed: int = 0
    """Random seed of the text and of the moments of kills."""
    result: Path | None = RESULTS / "kill_prepare.json"
    """Result file."""


def _write_source(folder: Path, options: KillOptions) -> None:
    """Write random words as documents into JSON-lines and text files."""
    generator = random.Random(options.seed)
    size = round(options.megabytes * 1e6 / options.files)
    for number in range(options.files):
        texts, written = [], 0
        while written < size:
            text = f"{generator.random()} " + " ".join(generator.choices(_WORDS, k=400))
            texts.append(text)
            written += len(text)
        if number % 2:
            path, content = f"{number:02d}.txt", "\n<|endoftext|>\n".join(texts)
        else:
            path = f"{number:02d}.jsonl"
            content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / path).write_text(content)


def _start(source: Path, out: Path, options: KillOptions) -> subprocess.Popen[bytes]:
    """Start the preparation by its command line, in a process group of its own."""
    words = ["--out", out, "--shard-tokens", options.shard_tokens, "--workers", options.workers]
    command = [sys.executable, ROOT / "data_prep/text.py", source, *words]
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _digest(folder: Path) -> str:
    """The sha256 of the names and bytes of all files."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def _finished_units(out: Path) -> int:
    """Number of finished units, which the next start will not repeat."""
    return len(list(out.with_name(f"{out.name}.partial").glob("units/[0-9]*/unit.json")))


def _kill_until_done(source: Path, out: Path, options: KillOptions, units: int) -> list[int]:
    """Kill at random moments, then let a last start run to its end.

    Returns the number of finished units at each kill. Raises: RuntimeError if the last start fails.
    """
    generator = random.Random(options.seed + 1)
    kept: list[int] = []
    while len(kept) < options.kills:
        before = _finished_units(out)
        # A limit of units, so that a fast machine also has work left for the later kills.
        enough = generator.uniform(0, 2 * (units - before) / (options.kills - len(kept) + 1))
        moment = time.monotonic() + generator.uniform(0, _MAX_LIFE_SECONDS)
        process = _start(source, out, options)
        while process.poll() is None and time.monotonic() < moment:
            if _finished_units(out) - before > enough:
                moment = min(moment, time.monotonic() + generator.uniform(0, 0.05))
            time.sleep(0.002)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept.append(_finished_units(out))
    if not out.exists() and _start(source, out, options).wait() != 0:
        raise RuntimeError("the last start failed")
    return kept


def run(options: KillOptions) -> bool:
    """Prepare once undisturbed and once with kills; returns whether everything was as expected."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source"
        source.mkdir()
        _write_source(source, options)
        begun = time.monotonic()
        if _start(source, folder / "undisturbed", options).wait() != 0:
            raise RuntimeError("the undisturbed preparation failed")
        undisturbed = time.monotonic() - begun
        shards = len(list((folder / "undisturbed").glob("train_??????.npy")))
        begun = time.monotonic()
        kept = _kill_until_done(source, folder / "killed", options, shards)
        seconds = time.monotonic() - begun
        same = _digest(folder / "killed") == _digest(folder / "undisturbed")
        left = sorted(path.name for path in folder.iterdir())
    result = {
        "kills": len(kept),
        "units": shards,
        "units_kept_at_each_kill": kept,
        "seconds_undisturbed": round(undisturbed, 1),
        "seconds_killed": round(seconds, 1),
        "identical": same,
        "left_behind": [name for name in left if name.endswith(".partial")],
    }
    for key, value in result.items():
        sys.stdout.write(f"{key:24} {value}\n")
    if options.result is not None:
        write_json(options.result, provenance(("numpy", "pyarrow")) | result)
    return same and not result["left_behind"] and len(kept) == options.kills


def main() -> None:
    """Read the options and run; exit with code 1 if something differs."""
    sys.exit(0 if run(parse_options(KillOptions, description=__doc__)) else 1)


if __name__ == "__main__":
    main()
