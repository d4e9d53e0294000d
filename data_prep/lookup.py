"""Look up which documents a training step read, or which steps read a document.

    python data_prep/lookup.py data/fineweb_edu --run runs/gpt2 --step 1234
    python data_prep/lookup.py data/fineweb_edu --run runs/gpt2 --document 42
    python data_prep/lookup.py data/fineweb_edu --run runs/gpt2 --source 003_00000.parquet:17
    python data_prep/lookup.py data/fineweb_edu --run runs/gpt2 --steps 100:200
    python data_prep/lookup.py data/web data/stories --run runs/mix --document stories:42

The fourth command counts how often a range of steps read each document. The answer is printed as
lines; --json FILE also writes it, --json - prints it as one JSON value instead. Nothing is stored
for this: the order of training is a function that can be inverted. The sources of a mixture are
named in the order of the run.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.audit.run_data import open_run_data
from data_prep.audit.run_record import RunRecord, StepRecord, parse_range, read_run
from data_prep.audit.tracing import Tracer, as_dicts, document_of, tracers_of
from data_prep.dataset.shards import check_data_set
from data_prep.preparation.console import run_script
from storage.script_options import DataSets, parse_options
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

    data: DataSets
    """Data set folder; of a mixture those of all sources."""
    run: Path
    """Run folder."""
    step: int | None = None
    """Print the documents that this step read."""
    document: int | str | None = None
    """Print what read this training document: its number in file order, in a mixture NAME:N."""
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
    run = read_run(options.run)
    data = open_run_data(run, options.data)
    for source in data.sources:
        check_data_set(source.data, "cached")  # what a damaged shard holds is not what the run read
    tracers = tracers_of(data, run)
    if options.step is not None:
        return _step(tracers, run.step(options.step), options.text)
    if options.steps is not None:
        return _coverage(tracers, run.steps_in(options.steps))
    tracer, document = document_of(tracers, options.document, options.source)
    value, lines = _document(tracer, run, document, options.text)
    if data.is_mixture:
        return {"data": tracer.name, **value}, [f"{tracer.name}: {lines[0]}", *lines[1:]]
    return value, lines


def _step(tracers: Sequence[Tracer], step: StepRecord, characters: int) -> tuple[Any, list[str]]:
    parts = [part for tracer in tracers for part in tracer.documents_of(step, characters)]
    value = {
        "step": step.step,
        "first_window": step.first_window,
        "windows": step.windows,
        "tokens": sum(part.tokens for part in parts),
        "documents": as_dicts(parts),
    }
    lines = [
        f"step {step.step}: windows {step.first_window} to {step.stop_window - 1}, "
        f"{value['tokens']:,} tokens of {len(parts)} documents"
    ]
    for part in parts:
        span = f"tokens {part.first_token} to {part.first_token + part.tokens - 1}"
        of_source = f"{part.data}: " if part.data else ""
        lines.append(
            f"{of_source}document {part.document} (epoch {part.epoch}, {part.source}:{part.row}), "
            f"{span} of {part.document_tokens}: {part.text!r}"
        )
    return value, lines


def _document(
    tracer: Tracer, run: RunRecord, document: int, characters: int
) -> tuple[Any, list[str]]:
    occurrences = tracer.occurrences(document)
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


def _coverage(tracers: Sequence[Tracer], steps: Sequence[StepRecord]) -> tuple[Any, list[str]]:
    each = [tracer.coverage(steps) for tracer in tracers]
    found: dict[str, Any] = each[0]
    lines = _seen(found)
    if len(tracers) > 1:
        together = ("first_step", "last_step", "breaks", "steps_without_update")
        tokens = {key: sum(one[key] for one in each) for key in ("tokens", "tokens_dropped")}
        sources = [
            {"data": tracer.name} | {key: one[key] for key in one if key not in together}
            for tracer, one in zip(tracers, each, strict=True)
        ]
        found = {key: found[key] for key in together} | tokens | {"sources": sources}
        lines = []
        for tracer, one in zip(tracers, each, strict=True):
            dropped = f", dropped: {one['tokens_dropped']:,}" if one["tokens_dropped"] else ""
            share = one["tokens"] / tokens["tokens"] if tokens["tokens"] else 0
            lines.append(f"{tracer.name}: {one['tokens']:,} tokens, {share:.2%}{dropped}")
            lines += [f"  {line}" for line in _seen(one)]
    first = (
        f"steps {found['first_step']} to {found['last_step']}: {found['tokens']:,} tokens, "
        f"dropped: {found['tokens_dropped'] or 'none'}"
    )
    if found["steps_without_update"]:
        lines.append(f"steps without an update (not finite): {found['steps_without_update']}")
    return found, [first, *lines, *found["breaks"]]


def _seen(found: dict[str, Any]) -> list[str]:
    """How often the documents of one source were read."""
    often = ", ".join(
        f"{count:,} {_TIMES.get(times, f'{times} times')}"
        for times, count in found["documents_by_times_seen"].items()
    )
    return [
        f"documents seen: {found['documents_seen']:,} of {found['documents']:,} ({often}); "
        f"in one epoch at most {found['most_times_in_one_epoch']} times",
        *(
            f"epoch {epoch}: {total['documents']:,} documents, {total['tokens']:,} tokens"
            for epoch, total in found["epochs"].items()
        ),
    ]


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
