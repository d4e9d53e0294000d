"""The record of a finished unit: unit.json in its folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.dataset.manifest import ShardEntry
from data_prep.preparation.bad_records import BadInUnit
from storage.atomic import read_json, write_json
from storage.records.json_fields import check_field_types

UNIT_RECORD = "unit.json"


@dataclass(frozen=True)
class UnitResult:
    """What a unit became. Its shards count files in the unit's own files."""

    skipped_empty: int
    bad: tuple[BadInUnit, ...]
    """The records that were left out."""
    train: ShardEntry | None
    val: ShardEntry | None
    encoder: str
    key: str
    split: list[Any]
    """All that decided which documents are validation."""

    def write(self, folder: Path) -> None:
        """Write the record to the unit's folder."""
        write_json(folder / UNIT_RECORD, asdict(self))

    def has_its_shards(self, folder: Path) -> bool:
        """Whether the shards are in the folder; not if a start was killed while it moved them."""
        names = [entry.name for entry in self.shards()]
        files = [folder / f"{name}{end}" for name in names for end in (".npy", ".lengths.npy")]
        return all(file.exists() for file in files)

    def shards(self) -> list[ShardEntry]:
        """The shards that it has."""
        return [entry for entry in (self.train, self.val) if entry is not None]


def read_unit_result(folder: Path) -> UnitResult | None:
    """The record in a unit's folder; None if there is none. Raises: ValueError if it is damaged."""
    path = folder / UNIT_RECORD
    if not path.is_file():
        return None
    content = read_json(path)
    cure = f"delete {folder} and start again"
    try:
        shards = {n: ShardEntry(**content[n]) if content[n] else None for n in ("train", "val")}
        bad = tuple(BadInUnit(**record) for record in content["bad"])
        result = UnitResult(**{**content, **shards, "bad": bad})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {cure}") from error
    for part in (result, *bad, *result.shards()):
        check_field_types(path, part, cure)
    return result
