"""From parquet files on disk to finished shards: ours against a pool of the build-nanogpt kind.

    python bench/data_prep_speed.py --source DOCS.parquet
    python bench/data_prep_speed.py --source prose.*.jsonl.zst --copies 4

In: parquet files, or others that data_prep/text.py reads, which are made into parquet first.
Out: results/data_prep_speed.json and a table. Every run is a process of its own, timed from its
start to its end, imports and all; the ways take turns. A third of the text is prepared as well:
what the rest adds is the rate that counts for a source of 46 GB, without the start.
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
import tyro
from datasets import load_dataset

from bench.process_session import Session
from bench.provenance import ROOT, provenance
from data_prep.dataset.manifest import read_manifest
from data_prep.sources.file_source import file_source
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from storage.atomic import write_json

RESULTS = ROOT / "bench" / "results"
POOL_SHARD_TOKENS = 100_000_000
CHUNK_SIZE = 16
ROWS_OF_A_GROUP = 1000
PACKAGES = ("tiktoken", "gigatoken", "numpy", "pyarrow", "datasets")

Way = Literal["shipped", "pool", "tiktoken", "auto"]
WAYS: dict[Way, str] = {
    "shipped": "pool in the manner of build-nanogpt, on half the cores as it ships",
    "pool": "the same on all cores",
    "tiktoken": "ours, tiktoken alone",
    "auto": "ours, gigatoken checked by tiktoken",
}


@dataclass(frozen=True)
class Options:
    """Measure the preparation of data."""

    source: tuple[str, ...] = ()
    """Files, folders or globs: .parquet, or .txt and .jsonl to make parquet of."""
    copies: int = 1
    """Read every file so often: more work, but text that is met again is faster to encode."""
    repeats: int = 3
    """Runs of each way; all are kept, the table shows the median."""
    processes: int = 2
    """Worker processes."""
    shard_tokens: int = 10_000_000
    """Tokens of our shards, of which one is one worker's unit; the pool's have 100,000,000."""
    scratch: Path | None = None
    """Folder for data sets and copies; None is the system's."""
    out: Path = RESULTS / "data_prep_speed.json"
    """The result."""
    pool: Path | None = None
    """For the run itself: prepare by the pool into this folder."""


# The stand-in, written from a description of build-nanogpt: rows of `datasets` go whole through a
# multiprocessing pool and come back as arrays. It takes half the cores; here it may have all, too.

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


def prepare_by_pool(paths: list[Path], out: Path, processes: int) -> int:
    """One consumer fills shards with what the pool's processes send it; the number of tokens."""
    out.mkdir()
    rows: Any = load_dataset(
        "parquet",
        data_files=[str(path) for path in paths],
        split="train",
        cache_dir=str(out.with_name(f"{out.name}.cache")),
    )
    shard, filled, number = np.empty(POOL_SHARD_TOKENS, np.uint16), 0, 0
    with multiprocessing.Pool(processes, _start_pool_worker) as pool:
        for tokens in pool.imap(_tokenize_row, rows, chunksize=CHUNK_SIZE):
            while filled + len(tokens) >= POOL_SHARD_TOKENS:
                room = POOL_SHARD_TOKENS - filled
                shard[filled:] = tokens[:room]
                np.save(out / f"shard_{number:06d}", shard)
                tokens, filled, number = tokens[room:], 0, number + 1
            shard[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
    if filled:
        np.save(out / f"shard_{number:06d}", shard[:filled])
    return number * POOL_SHARD_TOKENS + filled


def make_parquet(places: tuple[str, ...], copies: int, folder: Path) -> list[Path]:
    """The source as parquet files, each `copies` times (as links)."""
    source = file_source(places)
    paths = [source.root / file.name for file in source.files]
    if any(path.suffix != ".parquet" for path in paths):
        paths = [_as_parquet(places, folder / "made.parquet")]
    links = []
    for copy in range(copies):
        for number, path in enumerate(paths):
            links.append(folder / f"part_{copy:02d}_{number:03d}.parquet")
            links[-1].symlink_to(path)
    return links


def _as_parquet(places: tuple[str, ...], path: Path) -> Path:
    source = file_source(places)
    schema = pyarrow.schema([("text", pyarrow.string()), ("id", pyarrow.string())])
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for unit in source.plan(1 << 26):
            texts = [document.text.decode() for document in source.documents(unit)]
            names = [f"{unit.first_document + row}" for row in range(len(texts))]
            table = pyarrow.table({"text": texts, "id": names}, schema=schema)
            writer.write_table(table, row_group_size=ROWS_OF_A_GROUP)
    return path


def first_third(paths: list[Path], folder: Path) -> list[Path]:
    """The row groups that hold about the first third of the rows, in a file of their own."""
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


def run_once(way: Way, paths: list[Path], out: Path, options: Options) -> dict[str, Any]:
    """Prepare once by one way, in a process of its own."""
    names = [str(path) for path in paths]
    if way in ("shipped", "pool"):
        share = options.processes if way == "pool" else max(1, options.processes // 2)
        words = ["bench/data_prep_speed.py", "--source", *names, "--pool", str(out)]
        words += ["--processes", str(share)]
    else:
        words = ["data_prep/text.py", *names, "--out", str(out), "--encoder", way]
        words += ["--workers", str(options.processes), "--shard-tokens", str(options.shard_tokens)]
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=said, stderr=said, start_new_session=True
        )
        session = Session(process.pid)
        process.wait()
        seconds = time.perf_counter() - start
        cpu_seconds = session.end()
        if process.returncode:
            said.seek(0)
            raise ValueError(f"{way} failed: {said.read()[-2000:].decode(errors='replace')}")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": session.peak_bytes / 1e6,
        **_what_was_made(way, out),
    }


def _what_was_made(way: Way, out: Path) -> dict[str, Any]:
    if way in ("shipped", "pool"):
        shards = [np.load(path, mmap_mode="r") for path in out.glob("*.npy")]
        return {"tokens": sum(len(shard) for shard in shards)}
    manifest = read_manifest(out)
    return {
        "tokens": manifest.train.tokens + manifest.val.tokens,
        "text_bytes": manifest.train.text_bytes + manifest.val.text_bytes,
        "fingerprint": manifest.fingerprint,
    }


Runs = dict[Way, list[dict[str, Any]]]


def measure(sizes: dict[str, list[Path]], folder: Path, options: Options) -> dict[str, Runs]:
    """All runs by size and way; raises ValueError if two ways do not make the same tokens."""
    runs: dict[str, Runs] = {size: {way: [] for way in WAYS} for size in sizes}
    for turn in range(options.repeats):
        for size, paths in sizes.items():
            for way in WAYS:
                out = folder / f"{size}-{way}-{turn}"
                runs[size][way].append(run_once(way, paths, out, options))
                for made in folder.glob(f"{out.name}*"):
                    shutil.rmtree(made)
    for found in runs.values():
        tokens = {run["tokens"] for way in WAYS for run in found[way]}
        if len(tokens) != 1:
            raise ValueError(f"the ways made {tokens} tokens")
        if len({run["fingerprint"] for run in found["tiktoken"] + found["auto"]}) != 1:
            raise ValueError("our ways made different data sets")
    return runs


def table(runs: dict[str, Runs]) -> str:
    """Medians as Markdown, with ratios to the first; CPU time counts on a busy machine."""
    text_mb = {size: found["auto"][0]["text_bytes"] / 1e6 for size, found in runs.items()}
    rest_mb = text_mb["whole"] - text_mb["third"]

    def middle(way: Way, key: str, size: str = "whole") -> float:
        return statistics.median(run[key] for run in runs[size][way])

    def rest(way: Way, key: str) -> float:
        return middle(way, key) - middle(way, key, "third")

    lines = [
        f"{text_mb['whole']:.0f} MB of text, and what the last {rest_mb:.0f} of them add:",
        "",
        "| | seconds | tokens/s | first / it | CPU seconds | first / it "
        "| peak of all processes, MB | seconds of the rest | MB/s | first / it | CPU: first / it |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way, title in WAYS.items():
        seconds, cpu = middle(way, "seconds"), middle(way, "cpu_seconds")
        cells = [
            title,
            f"{seconds:.2f}",
            f"{middle(way, 'tokens') / seconds:,.0f}",
            f"{middle('shipped', 'seconds') / seconds:.2f}",
            f"{cpu:.1f}",
            f"{middle('shipped', 'cpu_seconds') / cpu:.2f}",
            f"{middle(way, 'peak_mb'):,.0f}",
            f"{rest(way, 'seconds'):.2f}",
            f"{rest_mb / rest(way, 'seconds'):.1f}",
            f"{rest('shipped', 'seconds') / rest(way, 'seconds'):.2f}",
            f"{rest('shipped', 'cpu_seconds') / rest(way, 'cpu_seconds'):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the JSON, print the table."""
    options = tyro.cli(Options, description=__doc__)
    if options.pool is not None:
        prepare_by_pool([Path(name) for name in options.source], options.pool, options.processes)
        return
    found = provenance(PACKAGES)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        paths = make_parquet(options.source, options.copies, Path(name))
        sizes = {"third": first_third(paths, Path(name)), "whole": paths}
        runs = measure(sizes, Path(name), options)
    settings = {key: getattr(options, key) for key in ("processes", "shard_tokens", "copies")}
    write_json(options.out, {**found, **settings, "runs": runs})
    sys.stdout.write(table(runs) + "\n")


if __name__ == "__main__":
    main()
