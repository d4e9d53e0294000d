"""Time of data preparation: a pool like build-nanogpt's, other tokenizers, an older version.

    python bench/data_prep_speed.py --source DOCS.parquet
    python bench/data_prep_speed.py --source prose.*.jsonl.zst --methods auto gpt4 narrow wide json
    python bench/data_prep_speed.py --source prose.*.jsonl.zst --methods old auto --old ../older

In: parquet files, or other files that data_prep/text.py reads and that are converted to parquet
first. Out: results/data_prep_speed.json and a table. Every run is a process of its own, timed from
its start to its end, imports included. The methods take turns. Each method also prepares a third of
the text. The difference between both times is free of start-up costs, so its rate is the one to
expect for a source of 46 GB.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from bench.data_prep_table import Method, Runs, table
from bench.data_prep_tokenizers import make_tokenizers
from bench.pool_preparation import prepare_by_pool
from bench.process_session import Session
from bench.provenance import RESULTS, ROOT, provenance
from data_prep.dataset.manifest import read_manifest
from data_prep.sources.file_source import file_source
from storage.atomic import write_json
from storage.script_options import parse_options
from storage.user_errors import exit_on_user_error

_ROW_GROUP_SIZE = 1000
_PACKAGES = ("tiktoken", "gigatoken", "tokenizers", "numpy", "pyarrow", "datasets")

_SAME_BYTES = ("tiktoken", "auto", "old")
_SAME_TOKENS = ("shipped", "pool", *_SAME_BYTES, "json", "library")
_POOLS = ("shipped", "pool")


@dataclass(frozen=True)
class Options:
    """Measure how fast text becomes shards."""

    source: tuple[str, ...] = ()
    """Files, folders or globs: .parquet, or .txt and .jsonl, which are converted to parquet."""
    copies: int = 1
    """Read every file N times. This gives more work, but repeated text is faster to encode."""
    methods: tuple[Method, ...] = ("shipped", "pool", "tiktoken", "auto")
    """What to compare; ratios are to the first."""
    old: Path | None = None
    """Folder of a checkout of an older version, for the method `old`."""
    repeats: int = 3
    """Runs of each method. The result has all of them, the table their median."""
    processes: int = 2
    """Worker processes."""
    shard_tokens: int = 10_000_000
    """Tokens of one of our shards, the unit of work of one process; the pool's have 100,000,000."""
    scratch: Path | None = None
    """Folder for data sets and copies; default: the system's temporary folder."""
    out: Path = RESULTS / "data_prep_speed.json"
    """Result file."""
    pool: Path | None = None
    """Used by the script itself: prepare with the pool into this folder."""


def _make_parquet(places: tuple[str, ...], copies: int, folder: Path) -> list[Path]:
    """The source as parquet files, each `copies` times as a symbolic link."""
    source = file_source(places)
    paths = [source.root / file.name for file in source.files]
    if any(path.suffix != ".parquet" for path in paths):
        paths = [_convert_to_parquet(places, folder / "made.parquet")]
    links = []
    for copy in range(copies):
        for number, path in enumerate(paths):
            links.append(folder / f"part_{copy:02d}_{number:03d}.parquet")
            links[-1].symlink_to(path)
    return links


def _convert_to_parquet(places: tuple[str, ...], path: Path) -> Path:
    source = file_source(places)
    schema = pyarrow.schema([("text", pyarrow.string()), ("id", pyarrow.string())])
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for unit in source.plan(1 << 26):
            texts = [document.text.decode() for document in source.documents(unit)]
            names = [f"{unit.first_document + row}" for row in range(len(texts))]
            table = pyarrow.table({"text": texts, "id": names}, schema=schema)
            writer.write_table(table, row_group_size=_ROW_GROUP_SIZE)
    return path


def _first_third(paths: list[Path], folder: Path) -> list[Path]:
    """A new file of the first row groups, with about a third of all rows."""
    files = [parquet.ParquetFile(path) for path in paths]
    left = sum(file.metadata.num_rows for file in files) // 3
    made = folder / "third.parquet"
    with parquet.ParquetWriter(made, files[0].schema_arrow, compression="zstd") as writer:
        for file in files:
            for group in range(file.metadata.num_row_groups):
                if left > 0:
                    table = file.read_row_group(group)
                    writer.write_table(table, row_group_size=table.num_rows)
                    left -= table.num_rows
    return [made]


def _run_once(method: Method, paths: list[Path], out: Path, options: Options) -> dict[str, Any]:
    """Prepare the files once, in a process of its own.

    Raises: ValueError with the end of its output if it fails.
    """
    names = [str(path) for path in paths]
    place = options.old.resolve() if method == "old" and options.old else ROOT
    if method in _POOLS:
        share = options.processes if method == "pool" else max(1, options.processes // 2)
        words = ["bench/data_prep_speed.py", "--source", *names, "--pool", str(out)]
        words += ["--processes", str(share)]
    else:
        encoder = "tiktoken" if method in ("tiktoken", "library") else "auto"
        words = ["data_prep/text.py", *names, "--out", str(out), "--encoder", encoder]
        words += ["--workers", str(options.processes), "--shard-tokens", str(options.shard_tokens)]
        tokenizer = out.parent / method
        words += ["--tokenizer", str(tokenizer)] if tokenizer.is_dir() else []
    # Where this is installed, only the path makes another checkout import its own modules.
    words = ["env", f"PYTHONPATH={place}", sys.executable, *words]
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            words, cwd=place, stdout=output, stderr=output, start_new_session=True
        )
        session = Session(process.pid)
        process.wait()
        seconds = time.perf_counter() - start
        cpu_seconds = session.end()
        if process.returncode:
            output.seek(0)
            raise ValueError(f"{method} failed: {output.read()[-2000:].decode(errors='replace')}")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": session.peak_bytes / 1e6,
        **_data_set_figures(method, out),
    }


def _data_set_figures(method: Method, out: Path) -> dict[str, Any]:
    if method in _POOLS:
        shards = [np.load(path, mmap_mode="r") for path in out.glob("*.npy")]
        return {"tokens": sum(len(shard) for shard in shards)}
    manifest = read_manifest(out)
    return {
        "tokens": manifest.train.tokens + manifest.val.tokens,
        "text_bytes": manifest.train.text_bytes + manifest.val.text_bytes,
        "fingerprint": manifest.fingerprint,
    }


def _measure(sizes: dict[str, list[Path]], folder: Path, options: Options) -> dict[str, Runs]:
    """All runs by size and method.

    Raises: ValueError if two methods give different numbers of tokens, or ours different data sets.
    """
    runs: dict[str, Runs] = {size: {method: [] for method in options.methods} for size in sizes}
    for turn in range(options.repeats):
        for size, paths in sizes.items():
            # Every second turn in the other order, so that none is always the first.
            for method in options.methods[:: 1 if turn % 2 == 0 else -1]:
                out = folder / f"{size}-{method}-{turn}"
                runs[size][method].append(_run_once(method, paths, out, options))
                for made in folder.glob(f"{out.name}*"):
                    shutil.rmtree(made)
    for found in runs.values():
        tokens = {run["tokens"] for method in _SAME_TOKENS for run in found.get(method, [])}
        if len(tokens) > 1:
            raise ValueError(f"the methods gave different numbers of tokens: {sorted(tokens)}")
        ours = (run for method in _SAME_BYTES for run in found.get(method, []))
        if len({run["fingerprint"] for run in ours}) > 1:
            raise ValueError("two encoders or versions of ours gave different data sets")
    return runs


def main() -> None:
    """Measure every method, write the JSON file, print the table."""
    options = parse_options(Options, description=__doc__)
    with exit_on_user_error(ValueError, OSError):
        _run(options)


def _run(options: Options) -> None:
    if options.pool is not None:
        prepare_by_pool([Path(name) for name in options.source], options.pool, options.processes)
        return
    if ("old" in options.methods) != (options.old is not None):
        raise ValueError(
            "the method `old` needs the folder --old of its checkout, and only it does"
        )
    found = provenance(_PACKAGES)
    scratch = options.scratch and options.scratch.resolve()  # programs start elsewhere
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        paths = _make_parquet(options.source, options.copies, Path(name))
        make_tokenizers(paths, Path(name), options.methods)
        sizes = {"third": _first_third(paths, Path(name)), "whole": paths}
        runs = _measure(sizes, Path(name), options)
    settings = {key: getattr(options, key) for key in ("processes", "shard_tokens", "copies")}
    write_json(options.out, {**found, **settings, "runs": runs})
    sys.stdout.write(table(runs) + "\n")


if __name__ == "__main__":
    main()
