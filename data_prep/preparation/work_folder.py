"""The work folder of a preparation, `OUT.partial`: its plan, and what is finished.

The folder of a unit is named by what decides the unit's bytes: its own files (sha256), its range,
the options of reading, the tokenizer and the split. It does not depend on any other file, nor on
where the unit stands in the source. So it is found again after other changes.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from data_prep.dataset.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    SourceEntry,
    read_manifest,
)
from data_prep.dataset.shards import DataSet, open_data_set
from data_prep.preparation.split import SplitKind, SplitRule
from data_prep.preparation.unit import UnitWork
from data_prep.preparation.units.record import UNIT_RECORD, read_unit_result
from data_prep.preparation.work_locks import Part, check_plan_unused, exclusive_lock
from data_prep.sources.file_source import DocumentSource, Unit
from data_prep.sources.formats import format_of
from data_prep.tokenizer import Tokenizer, load_tokenizer
from storage.atomic import read_json, write_json
from storage.digest import fingerprint
from storage.records.json_fields import check_field_types

_RULE = "split_rule"
_KEY_LENGTH = 24  # hexadecimal digits
LAYOUT = 2  # of the work folder
_NAMES_SHOWN = 3
_NO_SOURCE = {"source": None, "files": None}
log = logging.getLogger(__name__)


def _plan_file(partial: Path) -> Path:
    """The file with the plan of the preparation."""
    return partial / "plan.json"


def _differing_settings(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """`key=value` of `found` for each key whose values differ."""
    keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
    return [f"{key}={found.get(key)}" for key in keys]


def saved_split_rule(partial: Path, plan: dict[str, Any]) -> SplitRule | None:
    """The split rule that an earlier start with the same plan has chosen, if there was one."""
    found = _read_plan(partial)
    rule = found.pop(_RULE, None)
    if rule is None or _differing_settings(found, plan):
        return None
    cure = f"delete {partial} and start again"
    try:
        chosen = SplitRule(**{**rule, "val_files": tuple(rule["val_files"])})
        check_field_types(_plan_file(partial), chosen, cure)
        if chosen.split in get_args(SplitKind):
            return chosen
    except (KeyError, TypeError) as error:
        raise ValueError(f"{_plan_file(partial)} is damaged ({error}); {cure}") from error
    raise ValueError(f"{_plan_file(partial)} is damaged: it has no split rule; {cure}")


def _read_plan(partial: Path) -> dict[str, Any]:
    path = _plan_file(partial)
    found = read_json(path) if path.is_file() else {}
    known = isinstance(found, dict) and found.get("layout") == LAYOUT
    if path.is_file() and not (known and isinstance(found.get("files"), list)):
        raise ValueError(
            f"{partial} holds unfinished work that this version of the program cannot continue; "
            "delete it and start again"
        )
    return found


def start_or_resume(
    work: UnitWork,
    plan: dict[str, Any],
    tokenizer: Tokenizer,
    units: list[Unit],
    own: list[Unit],
) -> None:
    """Make the folders of a new preparation, or check that the unfinished one here is the same.

    If files of the source have changed, the finished units of all others are kept. `own` are the
    units that this process prepares.
    Raises: ValueError if finished units of other options or of another source would be lost, or if
    another process is preparing a part by the plan that is replaced.
    """
    partial = work.folder.parent
    found = _read_plan(partial)
    found.pop(_RULE, None)
    differing = _differing_settings(found, plan) if found else []
    if differing:
        finished = {path.parent.name for path in work.folder.glob(f"[!.]*/{UNIT_RECORD}")}
        kept = finished & {unit.key for unit in units}
        same_options = not _differing_settings(*({**p, **_NO_SOURCE} for p in (found, plan)))
        if finished and not (same_options and (kept or _share_a_file(found, plan))):
            shown = [text for text in differing if not text.startswith("files=")]
            raise ValueError(
                f"{partial} holds unfinished work of another preparation ({'; '.join(shown)} "
                "there); delete it or start with the same options and files"
            )
        check_plan_unused(partial, differing)
        _drop_other_units(work, kept)
        if finished:
            log.info(
                "the source has changed: %d of the %d finished units are kept, the others are made "
                "again",
                len(kept),
                len(finished),
            )
    for unit in own:  # of other units, another process may be writing just now
        for leftover in work.folder.glob(f".{unit.key}.*.partial"):
            shutil.rmtree(leftover)
    work.folder.mkdir(exist_ok=True)
    tokenizer.save(work.tokenizer_folder)
    write_json(_plan_file(partial), {**plan, _RULE: work.rule.as_json()})


def _share_a_file(found: dict[str, Any], plan: dict[str, Any]) -> bool:
    return not set(found["files"]).isdisjoint(plan["files"])


def _drop_other_units(work: UnitWork, kept: set[str]) -> None:
    """Delete the units of an earlier plan that are not in the present one, and its data folder."""
    shutil.rmtree(work.data_folder, ignore_errors=True)
    for folder in work.folder.glob("*/"):
        found = read_unit_result(folder) if folder.name in kept else None
        if found is None or not found.has_its_shards(folder):
            shutil.rmtree(folder)


def remove_unnamed(folder: Path, manifest: Manifest) -> None:
    """Delete from an unpublished data set what is not named, as killed processes left it."""
    shards = (*manifest.train.shards, *manifest.val.shards)
    named = {name for shard in shards for name in shard.files()}
    for path in folder.iterdir():
        if path.name == "tokenizer":
            for found in path.glob(".*"):
                found.unlink()
        elif path.name not in named and path.is_dir():
            shutil.rmtree(path)
        elif path.name not in named:
            path.unlink()


def _remove_leftover(partial: Path) -> None:
    """Delete a work folder that a crash has left after the data set was published."""
    if partial.is_dir() and not (partial / "data").exists():
        with exclusive_lock(partial):
            shutil.rmtree(partial, ignore_errors=True)


def check_all_finished(work: UnitWork, units: list[Unit]) -> None:
    """Raises: ValueError naming the parts with unfinished units."""
    count = len(units)
    missing = [number for number, unit in enumerate(units) if work.result(unit) is None]
    if not missing:
        return
    shown = ", ".join(str(part) for part in _latest_parts(work) if _has_any(part, missing, count))
    named = f"part {shown}: " if shown else ""
    raise ValueError(
        f"{named}{len(missing)} of {count} units are not finished, the first is {missing[0]}; "
        "run each missing part again with --part, then --merge"
    )


def _has_any(part: Part, missing: list[int], count: int) -> bool:
    return not set(part.units(count)).isdisjoint(missing)


def _latest_parts(work: UnitWork) -> list[Part]:
    """All parts of the latest division into parts, including those never started."""
    locks = sorted(work.folder.parent.glob("part_*_of_*.lock"), key=lambda p: p.stat().st_mtime)
    parts = int(locks[-1].stem.split("_of_")[1]) if locks else 0
    return [Part(number, parts) for number in range(1, parts + 1)]


def with_keys(
    units: Iterable[Unit], source: DocumentSource, rule: SplitRule, tokenizer: Tokenizer
) -> list[Unit]:
    """The units with their keys; equal files have units of different keys."""
    files = source.identity().files
    reading = {name: value for name, value in source.settings().items() if name != "validation"}
    base = fingerprint([FORMAT_VERSION, tokenizer.ranks_sha256, reading])
    seen: Counter[str] = Counter()
    keyed = []
    for unit in units:
        spans = [
            [files[s.file].sha256, format_of(files[s.file].name), s.start, s.stop, s.first_row]
            for s in unit.spans
        ]
        key = fingerprint([base, spans, unit.documents, rule.needed_at_once(unit)])[:_KEY_LENGTH]
        seen[key] += 1
        keyed.append(replace(unit, key=f"{key}-{seen[key]}"))
    return keyed


def is_data_set(out: Path) -> bool:
    """Whether there is a complete data set at `out`; False if it is new, or an empty folder.

    Raises: ValueError if `out` holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST_NAME).is_file():
        raise ValueError(f"{out} exists and is no data set; choose another --out or move it away")
    return True


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
    if not is_data_set(out):
        if out.exists():
            out.rmdir()
        return None
    manifest = read_manifest(out)
    found = _differing_settings(manifest.settings, settings)
    if not _is_made_with(tokenizer, out, manifest):
        found.append(f"tokenizer={manifest.tokenizer.name}")
    if not is_ours(manifest.source):
        found.append(_shown_source(manifest.source))
    if found:
        raise ValueError(
            f"{out} holds another data set (there: {'; '.join(found)}); "
            "choose another --out or move it away"
        )
    _remove_leftover(out.with_name(f"{out.name}.partial"))
    log.info("%s is complete already; to make it again, move it away first", out)
    return open_data_set(out)


def _is_made_with(tokenizer: Tokenizer, out: Path, manifest: Manifest) -> bool:
    if manifest.tokenizer.ranks_sha256 == tokenizer.ranks_sha256:
        return True
    # Older versions recorded the digest of the ranks alone, whatever the pattern.
    return load_tokenizer(out / "tokenizer").ranks_sha256 == tokenizer.ranks_sha256


def _shown_source(source: SourceEntry) -> str:
    """What a data set was made of, for a message."""
    if source.revision:
        return f"source {source.id} {source.revision}"
    names = [file.name for file in source.files[:_NAMES_SHOWN]]
    more = ", …" if len(source.files) > _NAMES_SHOWN else ""
    return f"made of {', '.join(names)}{more} with other content, or of other files"


def check_complete(folder: Path) -> None:
    """Raises: ValueError if a file of the unpublished data set does not match its manifest."""
    try:
        open_data_set(folder)
    except ValueError as error:
        raise ValueError(
            f"the data set came out damaged and is not published ({error}); check the disk, delete "
            f"{folder.parent} and run it again"
        ) from error
