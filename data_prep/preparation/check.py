"""Lists every bad record of a source, without preparing anything (`--check`)."""

import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from data_prep.hub.supply import Downloads, LocalFiles
from data_prep.planning.source_plan import plan_source
from data_prep.planning.units import cut
from data_prep.preparation.bad_records import refused_text
from data_prep.preparation.console import ProgressBar
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.pool import run_units
from data_prep.sources.file_source import DocumentSource, Unit, first_documents
from data_prep.sources.records import BadRecord
from data_prep.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_FOUND_SOME = 1  # exit code


@dataclass(frozen=True)
class _Check:
    """What a worker does with a unit: it reads all of it."""

    source: DocumentSource

    def run(self, unit: Unit, tokenizer: Tokenizer, progress: Any) -> list[BadRecord | str]:
        """The bad records, and a sentence for each file that cannot be read to its end."""
        found: list[BadRecord | str] = []
        left = unit.documents
        for span in unit.spans:
            one = replace(unit, spans=(span,), documents=min(left, span.rows))
            left -= one.documents
            try:
                for record in islice(self.source.records(one), one.documents):
                    bad = refused_text(record, self.source, tokenizer) or record
                    if isinstance(bad, BadRecord):
                        found.append(bad)
                    progress.add(1, 0, 0 if isinstance(bad, BadRecord) else len(bad.text))
            except ValueError as error:
                found.append(str(error))
        return found


def check_source(
    source: DocumentSource, options: PrepareOptions, downloads: Downloads | None = None
) -> None:
    """Read the whole source and log every bad record; exit with code 1 if there is one."""
    tokenizer, workers = options.chosen_tokenizer(), options.chosen_workers()
    plan = plan_source(source, options.shard_tokens, tokenizer, workers=workers, tolerant=True)
    digests = [file.sha256 for file in source.identity().files]
    units = cut(plan.files, digests, options.shard_tokens)
    if options.max_documents is not None:
        units = first_documents(units, options.max_documents)
    report = _Report(units)
    for number in sorted(plan.failed):
        report.add_unreadable(plan.failed[number])
    bar = ProgressBar(sum(unit.text_bytes for unit in units), 0)
    try:
        providing = downloads.provide(units) if downloads else None
        with providing or nullcontext(LocalFiles()) as provider:
            run_units(_Check(source), units, tokenizer, workers, bar, provider, report.add)
    finally:
        bar.close()
        if downloads is not None:
            downloads.clean()
    documents = sum(unit.documents for unit in units)
    log.info(
        "%s",
        f"{len(digests):,} files, {documents:,} records: {report.bad:,} bad records, "
        f"{report.unreadable:,} unreadable files",
    )
    if report.bad or report.unreadable:
        sys.exit(_FOUND_SOME)


class _Report:
    """Logs what is found, in the order of the source."""

    def __init__(self, units: list[Unit]) -> None:
        self.bad = self.unreadable = 0
        self._waiting: dict[int, list[BadRecord | str]] = {}
        self._order = [unit.first_document for unit in units]
        self._next = 0

    def add(self, unit: Unit, found: list[BadRecord | str]) -> None:
        """Take what a unit has; it is logged after that of all units before it."""
        self._waiting[unit.first_document] = found
        while self._next < len(self._order) and self._order[self._next] in self._waiting:
            for problem in self._waiting.pop(self._order[self._next]):
                if isinstance(problem, BadRecord):
                    self.bad += 1
                    log.info("%s", problem)
                else:
                    self.add_unreadable(problem)
            self._next += 1

    def add_unreadable(self, sentence: str) -> None:
        """Log a file that cannot be read to its end."""
        self.unreadable += 1
        log.info("%s", sentence)
