"""Look at a data set: what it consists of, and its documents as text.

    python data_prep/browse.py data/fineweb_edu                      # lengths, sources, scripts
    python data_prep/browse.py data/fineweb_edu --random 5           # or --longest 5
    python data_prep/browse.py data/fineweb_edu --find "once upon"   # the text as it is written
    python data_prep/browse.py data/fineweb_edu --step 500 --run runs/gpt2
    python data_prep/browse.py data/fineweb_edu --plot lengths.png

Documents come with their number, source file and row. --json FILE also writes the answer, --json -
prints it as one JSON value instead. Nothing is loaded as a whole. Of several data sets each is
shown; --step needs all that its run read, in the order of the run.
"""

import itertools
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.audit.run_data import folders_named, open_run_data
from data_prep.audit.run_record import read_run
from data_prep.audit.tracing import as_dicts, tracers_of
from data_prep.dataset.documents import Documents
from data_prep.dataset.manifest import SplitName
from data_prep.dataset.overview import (
    draw,
    draw_lengths,
    length_quantiles,
    longest,
    shares_by_script,
)
from data_prep.dataset.shards import DataSet, check_data_set, open_data_set
from data_prep.dataset.text_search import find_text
from data_prep.preparation.console import run_script
from data_prep.tokenizer import utf8
from storage.option_values import check_at_least, check_output_file
from storage.script_options import DataSets, parse_options
from storage.terminal.json_output import STANDARD_OUTPUT, check_json_target, write_json_target
from storage.terminal.printable import printable
from storage.terminal.quantities import counted, data_size, short

log = logging.getLogger("data_prep")  # not __name__, which is "__main__" in a script
_QUESTIONS = ("random", "longest", "find", "step")
_PICTURES = (".png", ".svg", ".pdf")
_AROUND = 60  # bytes on either side of a text that was found
_MOST_SOURCES = 10  # named in the overview; the others are counted


@dataclass(frozen=True)
class BrowseOptions:
    """Look at a data set. At most one of --random, --longest, --find and --step."""

    data: DataSets
    """Data set folder; several are shown one after the other. With --run all that it read."""
    split: Literal["train", "val"] = "train"
    """Which documents: those of training or of validation."""
    random: int | None = None
    """Show N documents drawn by chance."""
    longest: int | None = None
    """Show the N documents of most tokens."""
    find: str | None = None
    """Show where this text occurs, as it is written (upper and lower case differ)."""
    step: int | None = None
    """Show what this step of --run read."""
    run: Path | None = None
    """Run folder, for --step."""
    seed: int = 0
    """Chooses the documents of --random, and those from which shares of scripts are estimated."""
    most: int = 20
    """Places of --find to show; the search ends there."""
    text: int = 500
    """Characters of text to print of each document; 0: all."""
    plot: Path | None = None
    """Picture to write of how long documents are: .png, .svg or .pdf."""
    json: Path | None = None
    """JSON file to write the answer to; -: standard output, instead of lines."""

    def __post_init__(self) -> None:
        given = [name for name in _QUESTIONS if getattr(self, name) is not None]
        if len(given) > 1:
            names = " and ".join(f"--{name}" for name in given)
            raise ValueError(f"{names} given; give one of them")
        for name in ("random", "longest"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        for name, least in (("most", 1), ("text", 0), ("seed", 0)):
            check_at_least(name, getattr(self, name), least)
        if self.step is not None and self.split == "val":
            raise ValueError("--step reads documents of training; leave out --split val")
        if self.find == "":
            raise ValueError("--find '' would be everywhere; give a text")
        check_output_file("--plot", self.plot)
        check_json_target(self.json)

    def check(self) -> None:
        """Raises: ValueError for options that do not go together."""
        if (self.step is None) != (self.run is None):
            raise ValueError("--step N and --run FOLDER belong together: give both or neither")
        if self.plot is not None and self.plot.suffix.lower() not in _PICTURES:
            raise ValueError(f"--plot {self.plot} must end in {', '.join(_PICTURES)}")


def browse(options: BrowseOptions) -> tuple[dict[str, Any], list[str]]:
    """The answer as a JSON value and as lines of text; writes the picture, if one is asked for."""
    options.check()
    folders = folders_named(options.data)
    if options.plot is not None:
        _plot(folders, options.split, options.plot)
    if options.step is not None and options.run is not None:
        return _step(options.data, options.run, options.step, options.text)
    answers = [_answer(open_data_set(folder), options) for folder in folders]
    if len(answers) == 1:
        return answers[0]
    found, lines = [], []
    for folder, (value, own) in zip(folders, answers, strict=True):
        found.append({"data": str(folder), **value})
        lines += [f"{folder}:", *own]
    return {"data_sets": found}, lines


def _plot(folders: Sequence[Path], split: SplitName, path: Path) -> None:
    if len(folders) > 1:
        raise ValueError(f"--plot {path} shows one data set, and {len(folders)} are named")
    data = open_data_set(folders[0])
    check_data_set(data, "size")
    shards = Documents(data, split).shards
    title = f"{data.folder.name}, {split}: {counted(shards.documents, 'document')}, "
    draw_lengths(shards.lengths, title + f"{shards.tokens:,} tokens", path)


def _answer(data: DataSet, options: BrowseOptions) -> tuple[dict[str, Any], list[str]]:
    """What is asked of one data set."""
    check_data_set(data, "size")
    documents = Documents(data, options.split)
    if options.find is not None:
        return _found(documents, options.find, options.most)
    lengths = documents.shards.lengths
    if options.random is not None:
        return _shown(documents, draw(len(lengths), options.random, options.seed), options.text)
    if options.longest is not None:
        return _shown(documents, longest(lengths, options.longest), options.text)
    return _overview(documents, options.seed)


def _overview(documents: Documents, seed: int) -> tuple[dict[str, Any], list[str]]:
    manifest = documents.data.manifest
    entry = manifest.split(documents.split)
    quantiles = length_quantiles(documents.shards.lengths)
    sources = sorted(documents.tokens_by_source(), key=lambda source: -source[2])
    shares, sampled = shares_by_script(documents, seed)
    value = {
        "data": str(documents.data.folder),
        "split": documents.split,
        "documents": entry.documents,
        "tokens": entry.tokens,
        "text_bytes": entry.text_bytes,
        "tokens_at_percent_of_documents": quantiles,
        "sources": [{"name": n, "documents": d, "tokens": t} for n, d, t in sources],
        "share_of_bytes": shares,
        "sampled_bytes": sampled,
    }
    of_text = entry.tokens - entry.documents  # without end-of-text, which has no bytes
    per_token = f", {entry.text_bytes / of_text:.2f} bytes a token" if of_text else ""
    listed = ", ".join(f"{tokens:,} at {percent} %" for percent, tokens in quantiles.items())
    lines = [
        f"{documents.data.folder} ({manifest.source.id}), {documents.split}: "
        f"{counted(entry.documents, 'document')}, {entry.tokens:,} tokens, "
        f"{data_size(entry.text_bytes)} of text{per_token}",
        f"tokens of a document, shortest to longest: {listed}",
        f"source files: {len(sources):,}, those of most tokens:",
    ]
    for name, count, tokens in sources[:_MOST_SOURCES]:
        share = 100 * tokens / entry.tokens
        lines.append(f"  {share:5.1f} %  {short(tokens)} tokens of {short(count)} in {name}")
    lines.append(f"share of bytes, estimated from {data_size(sampled)} of documents by chance:")
    shown = [f"{kind} {100 * share:.2f} %" for kind, share in shares.items()]
    return value, [*lines, "  " + ", ".join(shown)]


def _shown(
    documents: Documents, numbers: Sequence[int], characters: int
) -> tuple[dict[str, Any], list[str]]:
    found, lines = [], []
    for number in numbers:
        name, row = documents.source(number)
        tokens, text = int(documents.shards.lengths[number]), documents.text(number, characters)
        found.append(
            {"document": number, "source": name, "row": row, "tokens": tokens, "text": text}
        )
        lines += [f"--- document {number} ({name}:{row}), {tokens:,} tokens", printable(text)]
    return {"documents": found}, lines


def _found(documents: Documents, wanted: str, most: int) -> tuple[dict[str, Any], list[str]]:
    began = time.perf_counter()
    found, lines = [], []
    hits = find_text(documents, utf8(wanted), _AROUND)
    for hit in itertools.islice(hits, most):
        name, row = documents.source(hit.document)
        found.append({**asdict(hit), "source": name, "row": row})
        where = f"document {hit.document} ({name}:{row}), token {hit.first_token}"
        lines.append(f"{where}: {(hit.before + wanted + hit.after)!r}")
    seconds = time.perf_counter() - began
    complete = len(found) < most
    end = "the whole split" if complete else f"the search ended after {most}; --most N shows more"
    lines.append(f"{counted(len(found), 'place')} in {seconds:.1f} s: {end}")
    return {"find": wanted, "complete": complete, "places": found}, lines


def _step(
    folders: Sequence[Path], run_folder: Path, number: int, characters: int
) -> tuple[dict[str, Any], list[str]]:
    run = read_run(run_folder)
    data = open_run_data(run, folders)
    for source in data.sources:
        check_data_set(source.data, "size")
    step = run.step(number)
    parts = [
        part
        for tracer in tracers_of(data, run)
        for part in tracer.documents_of(step, characters or sys.maxsize)
    ]
    lines = [
        f"step {number}: windows {step.first_window} to {step.stop_window - 1}, "
        f"{sum(part.tokens for part in parts):,} tokens of {counted(len(parts), 'document')}"
    ]
    for part in parts:
        span = f"tokens {part.first_token:,} to {part.first_token + part.tokens - 1:,}"
        of_source = f"{part.data}: " if part.data else ""
        lines += [
            f"--- {of_source}document {part.document} ({part.source}:{part.row}), {span} of "
            f"{part.document_tokens:,}, epoch {part.epoch}",
            printable(part.text),
        ]
    return {"step": number, "documents": as_dicts(parts)}, lines


def main() -> None:
    """Read the options, look and print."""

    def work() -> None:
        options = parse_options(BrowseOptions, description=__doc__)
        value, lines = browse(options)
        if options.json != STANDARD_OUTPUT:
            log.info("%s", "\n".join(lines))
        write_json_target(options.json, value)

    run_script(work)


if __name__ == "__main__":
    main()
