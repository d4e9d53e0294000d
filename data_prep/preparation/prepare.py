"""Documents to tokens to shards: in parallel, resumable, the same bytes however it is run.

Work goes on in `OUT.partial/`, one folder for each finished unit. At the end the shards are
numbered, the manifest is written last and the folder takes the name `OUT` by rename.
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
from data_prep.preparation.pool import default_workers, run_units
from data_prep.preparation.split import BYTES_PER_TOKEN, SplitRule, decide_split
from data_prep.preparation.unit import UnitWork
from data_prep.preparation.work_folder import (
    check_all_finished,
    differences,
    exclusive_lock,
    note_planned,
    part_lock,
    planning_lock,
    remembered_rule,
    remove_finished,
    start_or_go_on,
)
from data_prep.sources.file_source import Source, Unit, first_documents, units_as_json
from data_prep.tokenizer import Tokenizer
from storage.atomic import publish_folder
from storage.digest import fingerprint

log = logging.getLogger(__name__)

BYTES_PER_DOCUMENT = 24  # its length, place and hashes


def prepare(
    source: Source,
    out: Path,
    options: PrepareOptions,
    tokenizer: Tokenizer | None = None,
    downloads: Downloads | None = None,
) -> DataSet:
    """Make the data set `out` from a source, or go on with it, or say that it is complete.

    Raises: ValueError for a bad document, for an `out` that holds something else (nothing is ever
    overwritten), or if another process prepares the same.
    """
    job = _Job(source, out, options, tokenizer or options.chosen_tokenizer(), downloads)
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
        manifest.write(work.data_folder)
        _check_whole(work.data_folder)
        publish_folder(work.data_folder, out)
        shutil.rmtree(job.partial, ignore_errors=True)
    if downloads is not None:
        downloads.clean()
    data = open_data_set(out)
    log_summary(data, bar)
    return data


def prepare_part(
    source: Source, out: Path, options: PrepareOptions, downloads: Downloads | None = None
) -> None:
    """Finish the units of one part. Raises: ValueError as `prepare` does."""
    job = _Job(source, out, options, options.chosen_tokenizer(), downloads)
    if job.finished() is not None:
        return
    part = options.chosen_part()
    with part_lock(job.partial, part):
        with planning_lock(job.partial):
            work, units = job.begin()
            note_planned(job.partial, part)
        job.run(work, units)
    share = part.units(len(units))
    log.info("part %s: %d of the %d units are finished", part, len(share), len(units))
    log.info("when all parts are, run the same with --merge instead of --part")


def make(
    source: Source, out: Path, options: PrepareOptions, downloads: Downloads | None = None
) -> None:
    """What the options ask for: a part, the merge of parts, or everything."""
    if options.part is not None:
        prepare_part(source, out, options, downloads)
    else:
        prepare(source, out, options, downloads=downloads)


@dataclass(frozen=True)
class _Job:
    """One start of a preparation."""

    source: Source
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
            self.downloads.forget_described()
        return found

    def begin(self) -> tuple[UnitWork, list[Unit]]:
        """The plan and the folders for it, new or as an earlier start left them."""
        identity = self.source.identity()
        units = _plan(self.source, identity, self.options)
        plan = _plan_as_json(self.settings(), identity, self.tokenizer, units)
        rule = remembered_rule(self.partial, plan) or self._decide(units)
        folder = self.partial / "units"
        work = UnitWork(self.source, rule, folder, fingerprint(plan), self.options.encoder)
        share = self.options.chosen_part().units(len(units))
        start_or_go_on(work, plan, self.tokenizer, share)
        return work, units

    def _decide(self, units: list[Unit]) -> SplitRule:
        options = self.options
        prefix = units if options.split == "first" else []
        supplying = self.downloads.supplying(prefix, keep=True) if self.downloads else None
        with supplying or nullcontext(LocalFiles()) as supply:
            return decide_split(
                options.split,
                options.val_tokens,
                options.val_fraction,
                self.source,
                units,
                self.tokenizer,
                supply.wait,
            )

    def run(self, work: UnitWork, units: list[Unit]) -> ProgressBar:
        """Finish every unit of the part."""
        workers = self.options.workers or default_workers()
        share = self.options.chosen_part().units(len(units))
        todo = _unfinished(work, units, share)
        if len(todo) < len(share):
            log.info("going on: %d of %d units are finished", len(share) - len(todo), len(share))
        total = sum(units[number].text_bytes for number in share)
        bar = ProgressBar(total, total - sum(unit.text_bytes for _, unit in todo))
        try:
            while todo:  # again, for the units of a fast encoder that was found wrong later
                ahead = [unit for _, unit in todo]
                check_room(self.partial, ahead, self.downloads, workers, self.tokenizer.n_vocab)
                supplying = self.downloads.supplying(ahead) if self.downloads else None
                with supplying or nullcontext(LocalFiles()) as supply:
                    run_units(work, todo, work.tokenizer_folder, workers, bar, supply)
                todo = _unfinished(work, units, share)
        finally:
            bar.close()
        encoders = {result.encoder for n in share if (result := work.result(n))}
        log.info("encoded by %s", " and ".join(sorted(encoders)))
        return bar


def _unfinished(work: UnitWork, units: list[Unit], share: range) -> list[tuple[int, Unit]]:
    return [(number, units[number]) for number in share if work.result(number) is None]


def check_room(
    partial: Path, todo: list[Unit], downloads: Downloads | None, workers: int, n_vocab: int
) -> None:
    """Raises: ValueError if the disk has no room for the shards and for the files on the way."""
    text_bytes = sum(unit.text_bytes for unit in todo)
    documents = sum(unit.documents for unit in todo)
    shards = round(2 * text_bytes / BYTES_PER_TOKEN) + BYTES_PER_DOCUMENT * documents
    counts = 2 * 8 * n_vocab * len(todo)  # how often each id occurs, of train and of val
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
    """The data set at `out` if it is complete and made like this, None if there is nothing yet.

    Raises: ValueError if `out` holds anything else.
    """
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if not out.exists():
        return None
    if not (out / MANIFEST_NAME).is_file():
        raise ValueError(f"{out} exists and is no data set; choose another --out or move it away")
    manifest = read_manifest(out)
    found = differences(manifest.settings, settings)
    if manifest.tokenizer.ranks_sha256 != tokenizer.ranks_sha256:
        found.append(f"tokenizer={manifest.tokenizer.name}")
    if not is_ours(manifest.source):
        found.append(f"source {manifest.source.id} {manifest.source.revision}".rstrip())
    if found:
        raise ValueError(
            f"{out} holds another data set ({'; '.join(found)} there); "
            "choose another --out or move it away"
        )
    remove_finished(out.with_name(f"{out.name}.partial"))
    log.info("%s is complete already; to make it anew, move it away first", out)
    return open_data_set(out)


def _check_whole(folder: Path) -> None:
    """Raises: ValueError if a file of the data set in the making does not fit its manifest."""
    try:
        open_data_set(folder)
    except ValueError as error:
        raise ValueError(
            f"the data set came out damaged and is not published ({error}); check the disk, delete "
            f"{folder.parent} and run it again"
        ) from error


def _plan(source: Source, identity: SourceEntry, options: PrepareOptions) -> list[Unit]:
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
