"""Time of data preparation, compared with a process pool like build-nanogpt's.

    python bench/data_prep_speed.py --source DOCS.parquet
    python bench/data_prep_speed.py --source prose.*.jsonl.zst --copies 4

In: parquet files, or other files that data_prep/text.py reads and that are converted to parquet
first. Out: results/data_prep_speed.json and a table. Every run is a process of its own, timed from
its start to its end, imports included. The methods alternate. Each method also prepares a third of
the text. The difference between both times is free of start-up costs, so its rate is the one to
expect for a source of 46 GB.
"""

import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from datasets import load_dataset

from bench.process_session import Session
from bench.provenance import RESULTS, ROOT, provenance
from data_prep.dataset.manifest import read_manifest
from data_prep.sources.file_source import file_source
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from storage.atomic import write_json
from storage.script_options import parse_options

_POOL_SHARD_TOKENS = 100_000_000
_CHUNK_SIZE = 16
_ROW_GROUP_SIZE = 1000
_PACKAGES = ("tiktoken", "gigatoken", "numpy", "pyarrow", "datasets")

_Method = Literal["shipped", "pool", "tiktoken", "auto"]
METHODS: dict[_Method, str] = {
    "shipped": "pool like build-nanogpt's, on half of the cores as published",
    "pool": "the same pool on all cores",
    "tiktoken": "ours, tiktoken alone",
    "auto": "ours, gigatoken checked by tiktoken",
}


@dataclass(frozen=True)
class Options:
    """Measure how fast text becomes shards."""

    source: tuple[str, ...] = ()
    """Files, folders or globs: .parquet, or .txt and .jsonl, which are converted to parquet."""
    copies: int = 1
    """Read every file N times. This gives more work, but repeated text is faster to encode."""
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


# A substitute written from a description of build-nanogpt (https://github.com/karpathy/
# build-nanogpt): a multiprocessing pool gets each row of `datasets` and returns it as an array.
# build-nanogpt uses half of the cores. Here a second run uses all of them.

_tokenizer: Tokenizer | None = None


def _start_pool_worker() -> None:
    global _tokenizer
    _tokenizer = gpt2_tokenizer()


def _tokenize_row(row: dict[str, Any]) -> np.ndarray:
    assert _tokenizer is not None
    tokens = [_tokenizer.end_of_text]
    tokens.extend(_tokenizer.encode(row["text"]))
    array = np.array(tokens)
    assert ((array >= 0) & (array < 2**16)).all()
    return array.astype(np.uint16)


def _prepare_by_pool(paths: list[Path], out: Path, processes: int) -> int:
    """Fill shards with the rows that the pool's processes encode; returns the number of tokens."""
    out.mkdir()
    rows: Any = load_dataset(
        "parquet",
        data_files=[str(path) for path in paths],
        split="train",
        cache_dir=str(out.with_name(f"{out.name}.cache")),
    )
    shard, filled, number = np.empty(_POOL_SHARD_TOKENS, np.uint16), 0, 0
    with multiprocessing.Pool(processes, _start_pool_worker) as pool:
        for tokens in pool.imap(_tokenize_row, rows, chunksize=_CHUNK_SIZE):
            while filled + len(tokens) >= _POOL_SHARD_TOKENS:
                room = _POOL_SHARD_TOKENS - filled
                shard[filled:] = tokens[:room]
                np.save(out / f"shard_{number:06d}", shard)
                tokens, filled, number = tokens[room:], 0, number + 1
            shard[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
    if filled:
        np.save(out / f"shard_{number:06d}", shard[:filled])
    return number * _POOL_SHARD_TOKENS + filled


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


def _run_once(method: _Method, paths: list[Path], out: Path, options: Options) -> dict[str, Any]:
    """Prepare the files once, in a process of its own.

    Raises: ValueError with the end of its output if it fails.
    """
    names = [str(path) for path in paths]
    if method in ("shipped", "pool"):
        share = options.processes if method == "pool" else max(1, options.processes // 2)
        words = ["bench/data_prep_speed.py", "--source", *names, "--pool", str(out)]
        words += ["--processes", str(share)]
    else:
        words = ["data_prep/text.py", *names, "--out", str(out), "--encoder", method]
        words += ["--workers", str(options.processes), "--shard-tokens", str(options.shard_tokens)]
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=output, stderr=output, start_new_session=True
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


def _data_set_figures(method: _Method, out: Path) -> dict[str, Any]:
    if method in ("shipped", "pool"):
        shards = [np.load(path, mmap_mode="r") for path in out.glob("*.npy")]
        return {"tokens": sum(len(shard) for shard in shards)}
    manifest = read_manifest(out)
    return {
        "tokens": manifest.train.tokens + manifest.val.tokens,
        "text_bytes": manifest.train.text_bytes + manifest.val.text_bytes,
        "fingerprint": manifest.fingerprint,
    }


_Runs = dict[_Method, list[dict[str, Any]]]


def _measure(sizes: dict[str, list[Path]], folder: Path, options: Options) -> dict[str, _Runs]:
    """All runs by size and method.

    Raises: ValueError if two methods give different numbers of tokens, or ours different data sets.
    """
    runs: dict[str, _Runs] = {size: {method: [] for method in METHODS} for size in sizes}
    for turn in range(options.repeats):
        for size, paths in sizes.items():
            for method in METHODS:
                out = folder / f"{size}-{method}-{turn}"
                runs[size][method].append(_run_once(method, paths, out, options))
                for made in folder.glob(f"{out.name}*"):
                    shutil.rmtree(made)
    for found in runs.values():
        tokens = {run["tokens"] for method in METHODS for run in found[method]}
        if len(tokens) != 1:
            raise ValueError(f"the methods gave different numbers of tokens: {sorted(tokens)}")
        if len({run["fingerprint"] for run in found["tiktoken"] + found["auto"]}) != 1:
            raise ValueError("our two encoders gave different data sets")
    return runs


def table(runs: dict[str, _Runs]) -> str:
    """Medians as Markdown, with ratios to the first method.

    On a machine with other work, the ratios of CPU time are the reliable ones.
    """
    text_mb = {size: found["auto"][0]["text_bytes"] / 1e6 for size, found in runs.items()}
    rest_mb = text_mb["whole"] - text_mb["third"]

    def median(method: _Method, key: str, size: str = "whole") -> float:
        return statistics.median(run[key] for run in runs[size][method])

    def rest(method: _Method, key: str) -> float:
        return median(method, key) - median(method, key, "third")

    lines = [
        f"{text_mb['whole']:.0f} MB of text; the rest is the last {rest_mb:.0f} MB of it:",
        "",
        "| | seconds | tokens/s | first / it | CPU seconds | first / it "
        "| peak of all processes, MB | seconds of the rest | MB/s | first / it | CPU: first / it |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method, title in METHODS.items():
        seconds, cpu = median(method, "seconds"), median(method, "cpu_seconds")
        cells = [
            title,
            f"{seconds:.2f}",
            f"{median(method, 'tokens') / seconds:,.0f}",
            f"{median('shipped', 'seconds') / seconds:.2f}",
            f"{cpu:.1f}",
            f"{median('shipped', 'cpu_seconds') / cpu:.2f}",
            f"{median(method, 'peak_mb'):,.0f}",
            f"{rest(method, 'seconds'):.2f}",
            _ratio(rest_mb, rest(method, "seconds"), digits=1),
            _ratio(rest("shipped", "seconds"), rest(method, "seconds")),
            _ratio(rest("shipped", "cpu_seconds"), rest(method, "cpu_seconds")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(a: float, b: float, digits: int = 2) -> str:
    # With little text, the noise of the start-up can be larger than the time of the rest.
    return f"{a / b:.{digits}f}" if a > 0 and b > 0 else "-"


def main() -> None:
    """Measure every method, write the JSON file, print the table."""
    options = parse_options(Options, description=__doc__)
    if options.pool is not None:
        _prepare_by_pool([Path(name) for name in options.source], options.pool, options.processes)
        return
    found = provenance(_PACKAGES)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        paths = _make_parquet(options.source, options.copies, Path(name))
        sizes = {"third": _first_third(paths, Path(name)), "whole": paths}
        runs = _measure(sizes, Path(name), options)
    settings = {key: getattr(options, key) for key in ("processes", "shard_tokens", "copies")}
    write_json(options.out, {**found, **settings, "runs": runs})
    sys.stdout.write(table(runs) + "\n")


if __name__ == "__main__":
    main()
