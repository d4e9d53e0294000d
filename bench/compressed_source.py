"""CPU time of preparing one compressed file, at several numbers of units.

    python bench/compressed_source.py --units 10 20 40
    python bench/compressed_source.py --units 10 20 40 --code ../older-checkout

In: made-up JSON lines, as one plain file and as one .gz and one .zst. Out: the CPU seconds of
preparing each with all processes, results/compressed_source.json and a table. Every unit has the
same size, so the time should grow with their number, as that of the plain file does.
"""

import gzip
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from bench.process_session import Session
from bench.provenance import RESULTS, ROOT, provenance
from storage.atomic import write_json
from storage.script_options import parse_options

_WORDS = ["a", "river", "of", "light", "runs", "under", "old", "stone", "while", "birds", "wait"]
_KINDS = ("", ".gz", ".zst")
_BYTES_PER_TOKEN = 4.6  # as preparation counts, before it has seen the text


@dataclass(frozen=True)
class CompressedOptions:
    """Measure how the time to prepare a compressed file grows with its size."""

    units: tuple[int, ...] = (10, 20, 40)
    """Numbers of units, each a file of its own."""
    unit_megabytes: float = 4.0
    """Size of a unit's lines."""
    workers: int = 2
    """Worker processes."""
    repeats: int = 3
    """Runs of each. The result has all of them, the table their median."""
    code: Path = ROOT
    """Checkout whose data_prep/text.py is measured; this one by default."""
    result: Path | None = RESULTS / "compressed_source.json"
    """Result file."""


def _lines(size: int) -> Iterator[str]:
    generator = random.Random(0)
    while size > 0:
        text = f"{generator.random()} " + " ".join(generator.choices(_WORDS, k=400))
        line = json.dumps({"text": text}) + "\n"
        size -= len(line)
        yield line


def _write(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content, 6)
    elif path.suffix == ".zst":
        content = pyarrow.Codec("zstd").compress(content, asbytes=True)
    path.write_bytes(content)
    return path


def _measure(source: Path, out: Path, options: CompressedOptions) -> dict[str, Any]:
    """Prepare once, in a session of its own. Raises: RuntimeError if it fails."""
    tokens = round(options.unit_megabytes * 1e6 / _BYTES_PER_TOKEN)
    words = ["--out", out, "--workers", options.workers, "--shard-tokens", tokens]
    # By its name, so that the imports are those of the checkout.
    command = [sys.executable, "-m", "data_prep.text", source, *words]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=options.code,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    session = Session(process.pid)
    _, errors = process.communicate()
    cpu = session.end()
    if process.returncode:
        raise RuntimeError(errors.decode())
    shards = len(list(out.glob("train_??????.npy")))
    return {"cpu_seconds": cpu, "seconds": time.perf_counter() - begun, "shards": shards}


def _run(options: CompressedOptions) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for units in options.units:
            content = "".join(_lines(round(units * options.unit_megabytes * 1e6))).encode()
            sources = [_write(folder / f"{units}.jsonl{kind}", content) for kind in _KINDS]
            for turn in range(options.repeats):
                for source in sources:  # by turns, so that the machine's load is the same for all
                    out = folder / f"{source.name}.{turn}"
                    row = {"file": source.suffix.removeprefix(".jsonl") or "plain", "units": units}
                    rows.append(row | _measure(source, out, options))
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    kinds = list(dict.fromkeys(row["file"] for row in rows))
    lines = ["| units | " + " | ".join(f"{kind}, CPU s" for kind in kinds) + " |"]
    lines.append("| --: " * (len(kinds) + 1) + "|")
    for units in dict.fromkeys(row["units"] for row in rows):
        found = [
            statistics.median(
                row["cpu_seconds"] for row in rows if (row["file"], row["units"]) == (kind, units)
            )
            for kind in kinds
        ]
        lines.append(f"| {units} | " + " | ".join(f"{seconds:.2f}" for seconds in found) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table and write the result."""
    options = parse_options(CompressedOptions, description=__doc__)
    head = provenance(("gigatoken", "numpy", "pyarrow"))
    rows = _run(options)
    sys.stdout.write(_table(rows))
    if options.result is not None:
        write_json(options.result, head | {"rows": rows})


if __name__ == "__main__":
    main()
