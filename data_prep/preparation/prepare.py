"""The whole preparation of a data set: from a source to shards, parallel and resumable.

Work happens in `OUT.partial/`, with one folder for each finished unit. At the end the shards are
numbered, the manifest is written, and the folder is renamed to `OUT`. The bytes are the same for
any number of workers or parts, and after any interruption.
"""

import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.dataset.manifest import FORMAT_VERSION, MANIFEST_NAME, SourceEntry, read_manifest
from data_prep.dataset.shards import DataSet, open_data_set
from data_prep.hub.supply import Downloads, LocalFiles
from data_prep.preparation.assemble import assemble
from data_prep.preparation.console import ProgressBar, log_summary
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.pool import run_units
from data_prep.preparation.split import BYTES_PER_TOKEN, SplitRule, decide_split
from data_prep.preparation.unit import UnitWork
from data_prep.preparation.work_folder import (
    check_all_finished,
    differing_settings,
    exclusive_lock,
    mark_planned,
    part_lock,
    planning_lock,
    remove_leftover,
    saved_split_rule,
    start_or_resume,
)
from data_prep.sources.file_source import (
    DocumentSource,
    FileSource,
    Unit,
    first_documents,
    units_as_json,
)
from data_prep.tokenizer import Tokenizer
from data_prep.worker_processes import default_workers
from storage.atomic import publish_folder
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
            check_all_finished(work, len(units))
        else:
            bar = job.run(work, units)
        manifest = assemble(work, len(units), source.identity(), job.settings(), job.tokenizer)
        # The manifest is last: until the rename, a crash leaves a work folder and no data set.
        manifest.write(work.data_folder)
        _check_complete(work.data_folder)
        publish_folder(work.data_folder, out)
        shutil.rmtree(job.partial, ignore_errors=True)
    if downloads is not None:
        downloads.clean()
    data = open_data_set(out)
    log_summary(data, bar, source.passed_over if isinstance(source, FileSource) else 0)
    return data


def prepare_part(
    source: DocumentSource, out: Path, options: PrepareOptions, downloads: Downloads | None = None
) -> None:
    """Finish the units of one part. Raises: ValueError as `prepare` does."""
    job = _Preparation(source, out, options, options.chosen_tokenizer(), downloads)
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
    source: DocumentSource, out: Path, options: PrepareOptions, downloads: Downloads | None = None
) -> None:
    """Prepare what the options ask for: one part, the merge of all parts, or everything."""
    if options.part is not None:
        prepare_part(source, out, options, downloads)
    else:
        prepare(source, out, options, downloads=downloads)


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
        return self.out.with_name(f"{self.out.name}.partial")

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
        identity = self.source.identity()
        units = _plan(self.source, identity, self.options)
        plan = _plan_as_json(self.settings(), identity, self.tokenizer, units)
        rule = saved_split_rule(self.partial, plan) or self._decide_split(units)
        folder = self.partial / "units"
        work = UnitWork(self.source, rule, folder, fingerprint(plan), self.options.encoder)
        numbers = self.options.chosen_part().units(len(units))
        start_or_resume(work, plan, self.tokenizer, numbers)
        return work, units

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
        workers = self.options.workers or default_workers()
        numbers = self.options.chosen_part().units(len(units))
        todo = _unfinished(work, units, numbers)
        if len(todo) < len(numbers):
            done = len(numbers) - len(todo)
            log.info("continuing: %d of %d units are finished", done, len(numbers))
        total = sum(units[number].text_bytes for number in numbers)
        bar = ProgressBar(total, total - sum(unit.text_bytes for _, unit in todo))
        try:
            # Mostly once. Again if the fast encoder was found wrong: its units are no longer valid.
            while todo:
                remaining = [unit for _, unit in todo]
                _check_disk_space(
                    self.partial, remaining, self.downloads, workers, self.tokenizer.n_vocab
                )
                providing = self.downloads.provide(remaining) if self.downloads else None
                with providing or nullcontext(LocalFiles()) as provider:
                    run_units(work, todo, work.tokenizer_folder, workers, bar, provider)
                todo = _unfinished(work, units, numbers)
        finally:
            bar.close()
        encoders = {result.encoder for n in numbers if (result := work.result(n))}
        log.info("encoded by %s", " and ".join(sorted(encoders)))
        return bar


def _unfinished(work: UnitWork, units: list[Unit], numbers: range) -> list[tuple[int, Unit]]:
    return [(number, units[number]) for number in numbers if work.result(number) is None]


def _check_disk_space(
    partial: Path, todo: list[Unit], downloads: Downloads | None, workers: int, n_vocab: int
) -> None:
    """Raises: ValueError if the disk has no room for the shards and the downloaded files."""
    text_bytes = sum(unit.text_bytes for unit in todo)
    documents = sum(unit.documents for unit in todo)
    # 2 bytes per token, in the units' folders; moving them into the data set takes no space.
    shards = round(2 * text_bytes / BYTES_PER_TOKEN) + _BYTES_PER_DOCUMENT * documents
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


def finished_data_set(
    out: Path,
    settings: dict[str, Any],
    tokenizer: Tokenizer,
    is_ours: Callable[[SourceEntry], bool],
) -> DataSet | None:
    """The data set at `out` if it is complete and of these settings; None if `out` is new.

    An empty folder at `out` is removed.
    Raises: ValueError if `out` holds anything else.
    """
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if not out.exists():
        return None
    if not (out / MANIFEST_NAME).is_file():
        raise ValueError(f"{out} exists and is no data set; choose another --out or move it away")
    manifest = read_manifest(out)
    found = differing_settings(manifest.settings, settings)
    if manifest.tokenizer.ranks_sha256 != tokenizer.ranks_sha256:
        found.append(f"tokenizer={manifest.tokenizer.name}")
    if not is_ours(manifest.source):
        found.append(f"source {manifest.source.id} {manifest.source.revision}".rstrip())
    if found:
        raise ValueError(
            f"{out} holds another data set ({'; '.join(found)} there); "
            "choose another --out or move it away"
        )
    remove_leftover(out.with_name(f"{out.name}.partial"))
    log.info("%s is complete already; to make it again, move it away first", out)
    return open_data_set(out)


def _check_complete(folder: Path) -> None:
    """Raises: ValueError if a file of the unpublished data set does not match its manifest."""
    try:
        open_data_set(folder)
    except ValueError as error:
        raise ValueError(
            f"the data set came out damaged and is not published ({error}); check the disk, delete "
            f"{folder.parent} and run it again"
        ) from error


def _plan(source: DocumentSource, identity: SourceEntry, options: PrepareOptions) -> list[Unit]:
    units = source.plan(round(options.shard_tokens * BYTES_PER_TOKEN))
    if options.max_documents is not None:
        units = first_documents(units, options.max_documents)
    if not units:
        raise ValueError(f"the source {identity.id} holds no document; give other files")
    return units


def _plan_as_json(
    settings: dict[str, Any], identity: SourceEntry, tokenizer: Tokenizer, units: list[Unit]
) -> dict[str, Any]:
    return {
        **settings,
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer.ranks_sha256,
        "source": fingerprint(asdict(identity)),
        "units": fingerprint(units_as_json(units)),
    }
