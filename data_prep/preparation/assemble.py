"""The end of a preparation: number the shards of all units and describe them in a manifest."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dataset.manifest import (
    FORMAT_VERSION,
    Manifest,
    ShardEntry,
    SourceEntry,
    SplitEntry,
    SplitName,
    TokenizerEntry,
    split_entry,
)
from data_prep.preparation.duplicates import count_duplicates
from data_prep.preparation.unit import UnitResult, UnitWork
from data_prep.tokenizer import Tokenizer


def assemble(
    work: UnitWork,
    units: int,
    source: SourceEntry,
    settings: dict[str, Any],
    tokenizer: Tokenizer,
) -> Manifest:
    """Number the shards of all units, move them into the data folder and return their manifest.

    Raises: ValueError if training, or validation where it is expected, got no document. Then the
    finished units are deleted: another split needs other units.
    """
    results = [result for n in range(units) if (result := work.result(n)) is not None]
    train, val = (_collect(work, results, name, tokenizer.n_vocab) for name in ("train", "val"))
    missing = "train" if not train.shards else "validation"
    if not train.shards or (not val.shards and work.rule.expects_validation):
        shutil.rmtree(work.folder)
        raise ValueError(
            f"no document fell to {missing} by split={work.rule.split}; use another --val-tokens "
            "(0 for none), --split first (takes whole documents) or --split tail (cuts the one)"
        )
    folders = [work.unit_folder(n) for n in range(units)]
    return Manifest(
        format_version=FORMAT_VERSION,
        tokenizer=TokenizerEntry(
            tokenizer.name, tokenizer.ranks_sha256, tokenizer.n_vocab, tokenizer.end_of_text
        ),
        source=source,
        settings=settings,
        split_rule=work.rule.as_json(),
        skipped_empty=sum(result.skipped_empty for result in results),
        train=train,
        val=val,
        duplicates=count_duplicates(folders),
    ).sealed()


def _collect(
    work: UnitWork, results: list[UnitResult], name: SplitName, n_vocab: int
) -> SplitEntry:
    shards: list[ShardEntry] = []
    counts = np.zeros(n_vocab, np.int64)
    for number, result in enumerate(results):
        entry = result.train if name == "train" else result.val
        if entry is None:
            continue
        numbered = replace(entry, name=f"{name}_{len(shards):06d}")
        for old, new in zip(entry.files(), numbered.files(), strict=True):
            _move(work.unit_folder(number) / old, work.data_folder / new)
        counts += np.load(work.unit_folder(number) / f"{name}.counts.npy")
        shards.append(numbered)
    return split_entry(tuple(shards), counts)


def _move(old: Path, new: Path) -> None:
    """Rename a file, unless an earlier start has already done so."""
    if old.exists():
        old.rename(new)
    elif not new.exists():
        raise ValueError(f"{old} is missing; delete {old.parents[2]} and start again")
