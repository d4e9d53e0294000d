"""What four bytes a token cost in the loader, against two: the same documents, by turns.

    python bench/token_width.py

Documents like those of web text in two data sets: shards of uint16, and the same lengths in uint32.
The loader of training takes steps of one and the other in turns: order, reading from the page
cache, digest and copy. Counted are CPU seconds of all threads, since time by the clock is that of
whatever else runs on the machine. Prints Markdown and writes one JSON file.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.provenance import RESULTS, provenance
from data_prep.dataset.manifest import split_entry
from data_prep.dataset.shards import LENGTH, PLACE, TokenShards, shard_entry
from data_prep.dataset.token_writer import TokenWriter
from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource
from parallel.ranks import start
from storage.atomic import save_array, write_json
from storage.byte_pairs import token_dtype
from storage.option_values import check_at_least
from storage.script_options import parse_options
from train.batch_plan import BatchPlan
from train.experiments.intervals import Interval, mean_interval
from train.loader import Loader

_VOCABULARIES = {"uint16": 50_257, "uint32": 128_256}  # GPT-2's and Llama 3's
_TURNS = ("uint32", "uint16", "uint16", "uint32")
# Of the logarithm of lengths: mean 1,029 tokens, as in FineWeb-Edu (bench/order.py).
_MEDIAN, _SIGMA = 624, 1.0
_CONTEXT_LENGTH = 1024
_WINDOWS = 512


@dataclass(frozen=True)
class Options:
    """Measure the loader with two and with four bytes a token."""

    documents: int = 30_000
    """Documents of each data set, 1,029 tokens on average."""
    rounds: int = 10
    """Rounds, each of two turns with either width. The table has the mean of their ratios."""
    steps: int = 10
    """Steps of a turn, 0.5M tokens each."""
    out: Path = RESULTS / "token_width.json"
    """Result file."""

    def __post_init__(self) -> None:
        check_at_least("rounds", self.rounds, 2)
        check_at_least("documents", self.documents, 1)
        check_at_least("steps", self.steps, 1)


def _shards(folder: Path, n_vocab: int, documents: int) -> TokenShards:
    """One shard of random ids."""
    random = np.random.default_rng(0)
    lengths = np.maximum(random.lognormal(np.log(_MEDIAN), _SIGMA, documents), 2).astype(LENGTH)
    folder.mkdir()
    writer = TokenWriter(folder / "train.npy", token_dtype(n_vocab))
    writer.write(random.integers(0, n_vocab, int(lengths.sum(dtype=np.int64))))
    writer.close()
    save_array(folder / "train.lengths.npy", lengths)
    save_array(folder / "train.source.npy", np.zeros((documents, 2), PLACE))
    entry = split_entry((shard_entry(folder, "train", 0),), np.zeros(1, np.int64))
    return TokenShards(folder, entry, token_dtype(n_vocab))


def _turn(loader: Loader, steps: int) -> float:
    """CPU seconds of the windows of some steps."""
    began = time.process_time()
    for _ in range(steps):
        loader.next_step()
    return time.process_time() - began


def _measure(folder: Path, options: Options) -> dict[str, list[float]]:
    """CPU seconds of each turn, by width; those before the first round do not count."""
    ranks, plan = start("cpu"), BatchPlan(_CONTEXT_LENGTH, _WINDOWS, 16, 1)
    loaders = {}
    for name, n_vocab in _VOCABULARIES.items():
        shards = _shards(folder / name, n_vocab, options.documents)
        loaders[name] = Loader(OneSource(TrainingStream(shards, 1337)), plan, ranks, 0)
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for round_ in range(options.rounds + 1):
        for name in _TURNS:
            seconds = _turn(loaders[name], options.steps)
            if round_:
                found[name].append(seconds)
    for loader in loaders.values():
        loader.close()
    return found


def ratio(found: dict[str, list[float]]) -> Interval:
    """CPU seconds of a token in four bytes over one in two: the mean over rounds, 95 %."""
    wide, narrow = found["uint32"], found["uint16"]
    return mean_interval(
        [sum(wide[i : i + 2]) / sum(narrow[i : i + 2]) for i in range(0, len(wide), 2)]
    )


def table_of(found: dict[str, list[float]], tokens: int) -> str:
    """Speeds and ratios as Markdown; `tokens` are those of a turn."""
    lines = ["| shards | M tokens / CPU s | MB / CPU s | turns |", "| --- | --: | --: | --: |"]
    for name, seconds in found.items():
        speed, size = tokens / statistics.median(seconds) / 1e6, np.dtype(name).itemsize
        lines.append(f"| {name} | {speed:.0f} | {size * speed:.0f} | {len(seconds)} |")
    one = ratio(found)
    shown = [f"{x:.3f} ({y:.3f} to {z:.3f})" for x, y, z in (
        (one.mean, one.low, one.high), (one.mean / 2, one.low / 2, one.high / 2)
    )]  # fmt: skip
    rounds = f"mean of {one.count} rounds, 95 % interval"
    return "\n".join([*lines, "", f"uint32 / uint16, {rounds}: CPU time of a token {shown[0]}, "
                      f"of a byte {shown[1]}"])  # fmt: skip


def main() -> None:
    """Measure, write the JSON file, print the table."""
    options = parse_options(Options, description=__doc__)
    head: dict[str, Any] = provenance(("numpy", "torch"))
    with tempfile.TemporaryDirectory() as name:
        found = _measure(Path(name), options)
    tokens = options.steps * _WINDOWS * _CONTEXT_LENGTH
    one = ratio(found)
    token = {"mean": one.mean, "low": one.low, "high": one.high, "rounds": one.count}
    rows = {"tokens_of_a_turn": tokens, "cpu_seconds": found, "ratio_of_a_token": token}
    write_json(options.out, {**head, "documents": options.documents, **rows})
    sys.stdout.write(table_of(found, tokens) + "\n")


if __name__ == "__main__":
    main()
