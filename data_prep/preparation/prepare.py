"""The whole preparation of a data set: from a source to shards, parallel and resumable.

Work happens in `OUT.partial/`, with one folder for each finished unit. At the end the shards are
numbered, the manifest is written, and the folder is renamed to `OUT`. The bytes are the same for
any number of workers or parts, and after any interruption.
"""

import logging
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.dataset.manifest import FORMAT_VERSION
from data_prep.dataset.shards import DataSet, open_data_set
from data_prep.hub.supply import Downloads, LocalFiles
from data_prep.planning.source_plan import plan_source
from data_prep.planning.units import cut
from data_prep.preparation.assemble import assemble
from data_prep.preparation.bad_records import BadRecordCount
from data_prep.preparation.check import check_source
from data_prep.preparation.console import ProgressBar, log_summary
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.pool import run_units
from data_prep.preparation.split import SplitRule, decide_split
from data_prep.preparation.unit import UnitWork
from data_prep.preparation.work_folder import (
    LAYOUT,
    check_all_finished,
    check_complete,
    finished_data_set,
    remove_unnamed,
    saved_split_rule,
    start_or_resume,
    with_keys,
)
from data_prep.preparation.work_locks import (
    exclusive_lock,
    mark_planned,
    part_lock,
    planning_lock,
    plans_file,
)
from data_prep.sources.file_source import DocumentSource, FileSource, Unit, first_documents
from data_prep.tokenizer import Tokenizer
from storage.atomic import publish_folder
from storage.byte_pairs import token_dtype
from storage.digest import fingerprint

log = logging.getLogger(__name__)

_BYTES_PER_DOCUMENT = 24  # its length, source place and hashes


def prepare(
    source: DocumentSource,
    out: Path,
    options: PrepareOptions,
    tokenizer: Tokenizer | None = None,
    downloads: Downloads | None = None,
) -> DataSet:
    """Make the data set `out` from a source, continue an unfinished one, or open a complete one.

    Raises: ValueError for a bad document, for an `out` that holds anything else (nothing is ever
    overwritten), or if another process prepares the same data set.
    """
    job = _Preparation(source, out, options, tokenizer or options.chosen_tokenizer(), downloads)
    finished = job.finished()
    if finished is not None:
        return finished
    with exclusive_lock(job.partial):
        work, units = job.begin()
        bar = None
        if options.merge:
            check_all_finished(work, units)
        else:
            bar = job.run(work, units)
        manifest = assemble(work, units, source.identity(), job.settings(), job.tokenizer)
        remove_unnamed(work.data_folder, manifest)
        # The manifest is last: until the rename, a crash leaves a work folder and no data set.
        manifest.write(work.data_folder)
        check_complete(work.data_folder)
        publish_folder(work.data_folder, out)
        shutil.rmtree(job.partial, ignore_errors=True)
    if downloads is not None:
        downloads.clean()
    data = open_data_set(out)
    log_summary(data, bar, source.passed_over if isinstance(source, FileSource) else 0)
    return data


def prepare_part(
    source: DocumentSource,
    out: Path,
    options: PrepareOptions,
    tokenizer: Tokenizer | None = None,
    downloads: Downloads | None = None,
) -> None:
    """Finish the units of one part. Raises: ValueError as `prepare` does."""
    job = _Preparation(source, out, options, tokenizer or options.chosen_tokenizer(), downloads)
    if job.finished() is not None:
        return
    part = options.chosen_part()
    with part_lock(job.partial, part):
        with planning_lock(job.partial):
            work, units = job.begin()
            mark_planned(job.partial, part)
        job.run(work, units)
    finished = len(part.units(len(units)))
    log.info("part %s: %d of the %d units are finished", part, finished, len(units))
    log.info("when all parts are finished, run the same with --merge instead of --part")


def run_preparation(
    source: DocumentSource,
    out: Path,
    options: PrepareOptions,
    tokenizer: Tokenizer | None = None,
    downloads: Downloads | None = None,
) -> None:
    """Do what the options ask for: a check, one part, the merge of all parts, or everything."""
    if options.check:
        check_source(source, options, downloads)
    elif options.part is not None:
        prepare_part(source, out, options, tokenizer, downloads)
    else:
        prepare(source, out, options, tokenizer, downloads)


@dataclass(frozen=True)
class _Preparation:
    """One start of a preparation, with all its inputs."""

    source: DocumentSource
    out: Path
    options: PrepareOptions
    tokenizer: Tokenizer
    downloads: Downloads | None

    @property
    def partial(self) -> Path:
        return self.options.work_folder(self.out)

    def settings(self) -> dict[str, Any]:
        return {**self.options.settings(), **self.source.settings()}

    def finished(self) -> DataSet | None:
        identity = self.source.identity()
        found = finished_data_set(
            self.out, self.settings(), self.tokenizer, lambda found: found == identity
        )
        if found is not None and self.downloads is not None:
            self.downloads.discard_planning_files()
        return found

    def begin(self) -> tuple[UnitWork, list[Unit]]:
        """Make the plan, and create its folders or check those of an earlier start."""
        plan = self._plan_as_json()
        units = self._plan()
        rule = saved_split_rule(self.partial, plan) or self._decide_split(units)
        units = with_keys(units, self.source, rule, self.tokenizer)
        options = self.options
        folder = self.partial / "units"
        reference = self.tokenizer.reference
        work = UnitWork(self.source, rule, folder, options.encoder, options.skip_bad, reference)
        start_or_resume(work, plan, self.tokenizer, units, self._own(units))
        return work, units

    def _own(self, units: list[Unit]) -> list[Unit]:
        """The units of this part."""
        numbers = self.options.chosen_part().units(len(units))
        return units[numbers.start : numbers.stop]

    def _plan(self) -> list[Unit]:
        shard_tokens, identity = self.options.shard_tokens, self.source.identity()
        saved, workers = plans_file(self.partial), self.options.chosen_workers()
        plan = plan_source(self.source, shard_tokens, self.tokenizer, saved, workers)
        units = cut(plan.files, [file.sha256 for file in identity.files], shard_tokens)
        if self.options.max_documents is not None:
            units = first_documents(units, self.options.max_documents)
        if not units:
            raise ValueError(f"the source {identity.id} holds no document; give other files")
        return units

    def _plan_as_json(self) -> dict[str, Any]:
        identity = self.source.identity()
        return {
            **self.settings(),
            "layout": LAYOUT,
            "format_version": FORMAT_VERSION,
            "tokenizer": self.tokenizer.ranks_sha256,
            "source": fingerprint(asdict(identity)),
            "files": [file.name for file in identity.files],
        }

    def _decide_split(self, units: list[Unit]) -> SplitRule:
        options = self.options
        prefix = units if options.split == "first" else []
        providing = self.downloads.provide(prefix, keep=True) if self.downloads else None
        with providing or nullcontext(LocalFiles()) as provider:
            return decide_split(
                options.split,
                options.val_tokens,
                options.val_fraction,
                self.source,
                units,
                self.tokenizer,
                provider.wait,
            )

    def run(self, work: UnitWork, units: list[Unit]) -> ProgressBar:
        """Finish every unit of the part."""
        workers = self.options.chosen_workers()
        own = self._own(units)
        todo = _unfinished(work, own)
        if len(todo) < len(own):
            log.info("continuing: %d of %d units are finished", len(own) - len(todo), len(own))
        total = sum(unit.text_bytes for unit in own)
        bar = ProgressBar(total, total - sum(unit.text_bytes for unit in todo))
        try:
            # Mostly once. Again if the fast encoder was found wrong: its units are no longer valid.
            while todo:
                count = self._bad_records_so_far(work, units)
                n_vocab = self.tokenizer.n_vocab
                _check_disk_space(self.partial, todo, self.downloads, workers, n_vocab)
                providing = self.downloads.provide(todo) if self.downloads else None
                with providing or nullcontext(LocalFiles()) as provider:
                    run_units(
                        work,
                        todo,
                        self.tokenizer,
                        workers,
                        bar,
                        provider,
                        lambda unit, result, count=count: count.add(unit, result.bad),
                    )
                todo = _unfinished(work, own)
        finally:
            bar.close()
        encoders = {result.encoder for unit in own if (result := work.result(unit))}
        log.info("encoded by %s", " and ".join(sorted(encoders)))
        return bar

    def _bad_records_so_far(self, work: UnitWork, units: list[Unit]) -> BadRecordCount:
        count = BadRecordCount(self.source.identity().files, self.options.skip_bad)
        for unit in units:
            result = work.result(unit)
            count.add(unit, result.bad if result else ())
        return count


def _unfinished(work: UnitWork, units: list[Unit]) -> list[Unit]:
    return [unit for unit in units if work.result(unit) is None]


def _check_disk_space(
    partial: Path, todo: list[Unit], downloads: Downloads | None, workers: int, n_vocab: int
) -> None:
    """Raises: ValueError if the disk has no room for the shards and the downloaded files."""
    documents = sum(unit.documents for unit in todo)
    # In the units' folders; moving the shards into the data set takes no space.
    token_bytes = token_dtype(n_vocab).itemsize
    shards = token_bytes * sum(unit.tokens for unit in todo) + _BYTES_PER_DOCUMENT * documents
    counts = 2 * 8 * n_vocab * len(todo)  # int64 counts of every id, for train and val
    source = downloads.bytes_at_once(todo, workers) if downloads else 0
    free = shutil.disk_usage(partial).free
    needed = shards + counts + source
    if needed > free:
        raise ValueError(
            f"{partial.parent} has {free / 1e6:,.0f} MB free, but about {needed / 1e6:,.0f} are "
            f"needed: {(shards + counts) / 1e6:,.0f} for shards and {source / 1e6:,.0f} for source "
            "files at a time; make room, or choose an --out on another disk"
        )
