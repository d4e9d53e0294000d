"""Look up which documents a training step read, or which steps read a document.

    python data_prep/lookup.py data/fineweb_edu --run runs/gpt2 --step 1234
    python data_prep/lookup.py data/fineweb_edu --run runs/gpt2 --document 42
    python data_prep/lookup.py data/fineweb_edu --run runs/gpt2 --source 003_00000.parquet:17
    python data_prep/lookup.py data/fineweb_edu --run runs/gpt2 --steps 100:200

The last command counts how often a range of steps read each document. The answer is printed as
lines; --json FILE also writes it, --json - prints it as one JSON value instead. Nothing is stored
for this: the order of training is a function that can be inverted.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from data_prep.audit.run_record import RunRecord, parse_range, read_run
from data_prep.audit.tracing import Tracer, as_dicts
from data_prep.dataset.shards import check_data_set, open_data_set
from data_prep.preparation.console import run_script
from storage.script_options import parse_options
from storage.terminal.json_output import (
    STANDARD_OUTPUT,
    check_json_target,
    write_json_target,
)

log = logging.getLogger("data_prep")  # not __name__, which is "__main__" in a script
_TIMES = {0: "never", 1: "once", 2: "twice"}


@dataclass(frozen=True)
class LookupOptions:
    """Look up what a run read. Give exactly one of --step, --document, --source and --steps."""

    data: tyro.conf.Positional[Path]
    """Data set folder."""
    run: Path
    """Run folder."""
    step: int | None = None
    """Print the documents that this step read."""
    document: int | None = None
    """Print the epochs and steps that read this training document (its number in file order)."""
    source: str | None = None
    """The same for the document of FILE:ROW in the source; rows are counted from 0."""
    steps: str | None = None
    """Print how often the steps a:b (b not included) read each document; ":" is the whole run."""
    text: int = 100
    """Characters of text to print of each document."""
    json: Path | None = None
    """JSON file to write the answer to; -: standard output, instead of lines."""

    def __post_init__(self) -> None:
        given = [n for n in ("step", "document", "source", "steps") if getattr(self, n) is not None]
        if len(given) != 1:
            names = " and ".join(f"--{name}" for name in given) or "none of them"
            raise ValueError(f"{names} given; give one of --step, --document, --source and --steps")
        parse_range(self.steps)
        check_json_target(self.json)


def look_up(options: LookupOptions) -> tuple[Any, list[str]]:
    """The answer as a JSON value and as lines of text."""
    data, run = open_data_set(options.data), read_run(options.run)
    run.check_data(data)
    check_data_set(data, "cached")  # what a damaged shard holds is not what the run read
    tracer = Tracer(data)
    if options.step is not None:
        return _step(tracer, run, options.step, options.text)
    if options.steps is not None:
        return _coverage(tracer, run, options.steps)
    document = options.document
    if options.source is not None:
        document = tracer.document_from(options.source)
    assert document is not None
    return _document(tracer, run, document, options.text)


def _step(tracer: Tracer, run: RunRecord, number: int, characters: int) -> tuple[Any, list[str]]:
    step = run.step(number)
    parts = tracer.documents_of(run, step, characters)
    value = {
        "step": number,
        "first_window": step.first_window,
        "windows": step.windows,
        "tokens": sum(part.tokens for part in parts),
        "documents": as_dicts(parts),
    }
    lines = [
        f"step {number}: windows {step.first_window} to {step.stop_window - 1}, "
        f"{value['tokens']:,} tokens of {len(parts)} documents"
    ]
    for part in parts:
        span = f"tokens {part.first_token} to {part.first_token + part.tokens - 1}"
        lines.append(
            f"document {part.document} (epoch {part.epoch}, {part.source}:{part.row}), "
            f"{span} of {part.document_tokens}: {part.text!r}"
        )
    return value, lines


def _document(
    tracer: Tracer, run: RunRecord, document: int, characters: int
) -> tuple[Any, list[str]]:
    occurrences = tracer.occurrences(run, document)
    name, row = tracer.source(document)
    ids = tracer.shards.read_document(document)
    text = tracer.tokenizer.decode(ids[1:].tolist())[:characters]
    value = {
        "document": document,
        "source": name,
        "row": row,
        "document_tokens": len(ids),
        "text": text,
        "seen": as_dicts(occurrences),
    }
    lines = [f"document {document} ({name}:{row}), {len(ids)} tokens: {text!r}"]
    for seen in occurrences:
        lines.append(
            f"epoch {seen.epoch}: windows {seen.first_window} to {seen.last_window}, "
            f"steps {seen.first_step} to {seen.last_step}, {seen.tokens} of its tokens"
        )
    if not occurrences:
        lines.append(f"{run.folder} has not read it")
    return value, lines


def _coverage(tracer: Tracer, run: RunRecord, steps: str) -> tuple[Any, list[str]]:
    found = tracer.coverage(run, run.steps_in(steps))
    often = ", ".join(
        f"{count:,} {_TIMES.get(times, f'{times} times')}"
        for times, count in found["documents_by_times_seen"].items()
    )
    lines = [
        f"steps {found['first_step']} to {found['last_step']}: {found['tokens']:,} tokens, "
        f"dropped: {found['tokens_dropped'] or 'none'}",
        f"documents seen: {found['documents_seen']:,} of {found['documents']:,} ({often}); "
        f"in one epoch at most {found['most_times_in_one_epoch']} times",
        *(
            f"epoch {epoch}: {total['documents']:,} documents, {total['tokens']:,} tokens"
            for epoch, total in found["epochs"].items()
        ),
    ]
    if found["steps_without_update"]:
        lines.append(f"steps without an update (not finite): {found['steps_without_update']}")
    return found, [*lines, *found["breaks"]]


def main() -> None:
    """Read the options, look up and print the answer."""

    def work() -> None:
        options = parse_options(LookupOptions, description=__doc__)
        value, lines = look_up(options)
        if options.json != STANDARD_OUTPUT:
            log.info("%s", "\n".join(lines))
        write_json_target(options.json, value)

    run_script(work)


if __name__ == "__main__":
    main()
