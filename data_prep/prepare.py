"""Documents to tokens to shards: in parallel, resumable, the same bytes however it is run.

Work goes on in `OUT.partial/`, one folder for each finished unit. At the end the shards are
numbered, the manifest is written last and the folder takes the name `OUT` by rename.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.assemble import assemble
from data_prep.console import ProgressBar, log_summary
from data_prep.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    SourceEntry,
    read_manifest,
)
from data_prep.pool import default_workers, run_units
from data_prep.shards import DataSet, open_data_set
from data_prep.sources import Source, Unit, first_documents, units_as_json
from data_prep.split import BYTES_PER_TOKEN, SplitKind, decide_split
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from data_prep.unit import UnitWork
from storage.atomic import publish_folder, read_json, write_json
from storage.digest import fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareOptions:
    """How a source becomes a data set. All but `workers` decide its bytes."""

    workers: int | None = None
    """Processes that tokenize; by default one for each processor core."""
    shard_tokens: int = 100_000_000
    """Tokens of a train shard, about: a shard holds whole documents and whole pieces of files."""
    val_tokens: int | None = None
    """Validation tokens wanted; by default 10,000,000, or a twentieth of the source if less."""
    max_documents: int | None = None
    """Take only this many documents from the start of the source."""
    split: SplitKind = "hash"
    """Validation is chosen by a hash of the text (no copy of a document is on both sides), is the
    first documents, or is the tail of a single one."""
    val_fraction: float = 0.1
    """With split=tail: the part of the text, at its end, that is validation."""

    def __post_init__(self) -> None:
        for name in ("workers", "shard_tokens", "max_documents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.val_tokens is not None and self.val_tokens < 0:
            raise ValueError(f"val_tokens={self.val_tokens} must be 0 (no validation) or more")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction} must be between 0 and 1")
        if self.split == "tail" and self.val_tokens is not None:
            raise ValueError(
                f"val_tokens={self.val_tokens} has no meaning with split=tail; use --val-fraction"
            )

    def settings(self) -> dict[str, Any]:
        """What decides the bytes, for the manifest."""
        kind = {"split": self.split}
        if self.split == "tail":
            size = {"val_fraction": self.val_fraction}
        else:
            size = {"val_tokens": self.val_tokens}
        limits = {"shard_tokens": self.shard_tokens, "max_documents": self.max_documents}
        return {**limits, **kind, **size}


def prepare(
    source: Source, out: Path, options: PrepareOptions, tokenizer: Tokenizer | None = None
) -> DataSet:
    """Make the data set `out` from a source, or go on with it, or say that it is complete.

    Raises: ValueError for a bad document, for an `out` that holds something else (nothing is ever
    overwritten), or if another process prepares the same.
    """
    tokenizer = tokenizer or gpt2_tokenizer()
    settings = {**options.settings(), **source.settings()}
    identity = source.identity()
    finished = finished_data_set(out, settings, tokenizer, lambda found: found == identity)
    if finished is not None:
        return finished
    partial = out.with_name(f"{out.name}.partial")
    with only_preparer(partial):
        units = _plan(source, identity, options)
        rule = decide_split(
            options.split, options.val_tokens, options.val_fraction, source, units, tokenizer
        )
        work = UnitWork(source, rule, partial / "units")
        start_or_go_on(work, _plan_as_json(settings, identity, tokenizer, units), tokenizer)
        bar = _run(work, units, options.workers or default_workers())
        manifest = assemble(work, len(units), identity, settings, tokenizer)
        manifest.write(work.data_folder)
        publish_folder(work.data_folder, out)
        shutil.rmtree(work.folder)
    data = open_data_set(out)
    log_summary(data, bar)
    return data


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
    differences = _differences(manifest.settings, settings)
    if manifest.tokenizer.ranks_sha256 != tokenizer.ranks_sha256:
        differences.append(f"tokenizer={manifest.tokenizer.name}")
    if not is_ours(manifest.source):
        differences.append(f"source {manifest.source.id} {manifest.source.revision}".rstrip())
    if differences:
        raise ValueError(
            f"{out} holds another data set ({'; '.join(differences)} there); "
            "choose another --out or move it away"
        )
    log.info("%s is complete already; to make it anew, move it away first", out)
    return open_data_set(out)


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    return [f"{key}={found.get(key)}" for key in keys]


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


def start_or_go_on(work: UnitWork, plan: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Make the folders of a new preparation, or check that the one begun here is the same.

    Raises: ValueError if finished units of another plan would be lost.
    """
    begun = work.folder.parent / "plan.json"
    differences = _differences(read_json(begun), plan) if begun.is_file() else []
    if differences and any(work.folder.glob("*/unit.json")):
        raise ValueError(
            f"{begun.parent} holds unfinished work of another preparation "
            f"({'; '.join(differences)} there); delete it or start with the same options and files"
        )
    if differences:
        shutil.rmtree(work.data_folder)
    for debris in work.folder.glob(".*.partial"):
        shutil.rmtree(debris)
    work.folder.mkdir(exist_ok=True)
    tokenizer.save(work.tokenizer_folder)
    write_json(begun, plan)


@contextmanager
def only_preparer(partial: Path) -> Iterator[None]:
    """Hold the lock of the work folder, which is there while there is work to keep.

    Raises: ValueError if another process holds it.
    """
    partial.mkdir(parents=True, exist_ok=True)
    lock = partial / "lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is preparing in {partial}; wait for it or choose another --out"
            ) from None
        # Between opening and locking, the process that finished may have removed the file.
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise ValueError(f"another process has just finished in {partial}; run it again")
        try:
            yield
        finally:
            if not any(partial.glob("units/*/unit.json")):
                shutil.rmtree(partial, ignore_errors=True)


def _run(work: UnitWork, units: list[Unit], workers: int) -> ProgressBar:
    todo = [(n, unit) for n, unit in enumerate(units) if work.result(n) is None]
    if len(todo) < len(units):
        log.info("going on: %d of %d units are finished", len(units) - len(todo), len(units))
    total = sum(unit.text_bytes for unit in units)
    bar = ProgressBar(total, total - sum(unit.text_bytes for _, unit in todo))
    try:
        run_units(work, todo, work.tokenizer_folder, workers, bar)
    finally:
        bar.close()
    return bar
