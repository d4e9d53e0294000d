"""The end of a preparation: number the shards of all units and describe them in a manifest."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dataset.manifest import (
    Manifest,
    ShardEntry,
    SourceEntry,
    SplitEntry,
    SplitName,
    TokenizerEntry,
    split_entry,
    token_format,
)
from data_prep.dataset.shards import PLACE
from data_prep.preparation.bad_records import BadRecordCount
from data_prep.preparation.duplicates import count_duplicates
from data_prep.preparation.unit import UnitWork
from data_prep.preparation.units.record import UnitResult
from data_prep.sources.file_source import Unit
from data_prep.tokenizer import Tokenizer
from storage.atomic import load_array, save_array
from storage.digest import file_sha256


def assemble(
    work: UnitWork,
    units: list[Unit],
    source: SourceEntry,
    settings: dict[str, Any],
    tokenizer: Tokenizer,
) -> Manifest:
    """Number the shards of all units, move them into the data folder and return their manifest.

    Raises: ValueError if training, or validation where it is expected, got no document. Then the
    finished units are deleted: another split needs other units.
    """
    results = [(unit, result) for unit in units if (result := work.result(unit)) is not None]
    bad = BadRecordCount(source.files, work.skip_bad)
    for unit, result in results:
        bad.add(unit, result.bad)
    train, val = (_collect(work, results, name, tokenizer.n_vocab) for name in ("train", "val"))
    missing = "train" if not train.shards else "validation"
    if not train.shards or (not val.shards and work.rule.expects_validation):
        shutil.rmtree(work.folder)
        raise ValueError(
            f"no document fell to {missing} by split={work.rule.split}; use another --val-tokens "
            "(0 for none), --split first (takes whole documents) or --split tail (cuts the one)"
        )
    folders = [work.unit_folder(unit) for unit in units]
    return Manifest(
        **token_format(tokenizer.n_vocab),
        tokenizer=TokenizerEntry(
            tokenizer.name, tokenizer.ranks_sha256, tokenizer.n_vocab, tokenizer.end_of_text
        ),
        source=source,
        settings=settings,
        split_rule=work.rule.as_json(),
        skipped_empty=sum(result.skipped_empty for _, result in results),
        train=train,
        val=val,
        duplicates=count_duplicates(folders),
        bad_records=bad.count,
        first_bad_records=bad.first(),
    ).sealed()


def _collect(
    work: UnitWork, results: list[tuple[Unit, UnitResult]], name: SplitName, n_vocab: int
) -> SplitEntry:
    shards: list[ShardEntry] = []
    counts = np.zeros(n_vocab, np.int64)
    for unit, result in results:
        entry = result.train if name == "train" else result.val
        if entry is None:
            continue
        shard = replace(entry, name=f"{name}_{len(shards):06d}")
        folder = work.unit_folder(unit)
        *moved, _ = zip(entry.files(), shard.files(), strict=True)
        for old, new in moved:
            _move(folder / old, work.data_folder / new)
        places = work.data_folder / f"{shard.name}.source.npy"
        _number_files(folder / f"{name}.source.npy", places, unit)
        counts += load_array(folder / f"{name}.counts.npy", f"delete {folder} and start again")
        shards.append(replace(shard, source_sha256=file_sha256(places)))
    return split_entry(tuple(shards), counts)


def _number_files(old: Path, new: Path, unit: Unit) -> None:
    """Copy the places of a shard's documents, whose files count in the unit, as in the source."""
    places = load_array(old, f"delete {old.parent} and start again")
    places[:, 0] = np.array([span.file for span in unit.spans], PLACE)[places[:, 0]]
    save_array(new, places)


def _move(old: Path, new: Path) -> None:
    """Rename a file, unless an earlier start has already done so."""
    if old.exists():
        old.rename(new)
    elif not new.exists():
        raise ValueError(f"{old} is missing; delete {old.parents[2]} and start again")
