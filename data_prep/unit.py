"""One unit of work: a run of the source becomes a train shard, and a val shard if it has any.

Runs in a worker process. The unit's folder appears whole, by rename, so a unit is done or absent.
"""

from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from data_prep.manifest import ShardEntry
from data_prep.shards import save_shard, shard_entry
from data_prep.sources import Document, Source, Unit
from data_prep.split import SplitRule
from data_prep.tokenizer import Tokenizer, without_surrogates
from storage.atomic import new_folder, read_json, write_json

TOKENS_AT_ONCE = 1 << 22


class Interrupted(Exception):
    """The preparation was asked to stop; the unfinished unit is dropped."""


class Progress(Protocol):
    """Where a worker reports to."""

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        """Count work done. Raises: Interrupted if the preparation is to stop."""
        ...


@dataclass(frozen=True)
class UnitResult:
    """What a finished unit says about itself (unit.json in its folder)."""

    skipped_empty: int
    train: ShardEntry | None
    val: ShardEntry | None


class ShardWriter:
    """Collects the documents of one shard: 2 bytes a token, 12 a document."""

    def __init__(self, end_of_text: int) -> None:
        self._opening = np.array([end_of_text], np.uint16).tobytes()
        self._tokens = bytearray()
        self._lengths = array("I")
        self._places = array("I")
        self._text_bytes = 0

    def add(self, document: Document, ids: np.ndarray, text_bytes: int) -> None:
        """Append one document, opened by end-of-text."""
        self._tokens += self._opening
        self._tokens += ids.tobytes()
        self._lengths.append(len(ids) + 1)
        self._places.extend((document.file, document.row))
        self._text_bytes += text_bytes

    def save(self, folder: Path, name: str, n_vocab: int) -> ShardEntry | None:
        """Write the shard and how often each id occurs in it, if there is any document."""
        if not self._lengths:
            return None
        tokens = np.frombuffer(self._tokens, np.uint16)
        places = np.array(self._places, np.uint32).reshape(-1, 2)
        save_shard(folder, name, tokens, np.array(self._lengths, np.uint32), places)
        counts = np.zeros(n_vocab, np.int64)
        for start in range(0, len(tokens), TOKENS_AT_ONCE):
            counts += np.bincount(tokens[start : start + TOKENS_AT_ONCE], minlength=n_vocab)
        np.save(folder / f"{name}.counts.npy", counts)
        return shard_entry(folder, name, self._text_bytes)


@dataclass(frozen=True)
class UnitWork:
    """All that a worker needs to turn any unit of the source into shards in `folder`."""

    source: Source
    rule: SplitRule
    folder: Path

    @property
    def data_folder(self) -> Path:
        """The data set in the making, beside the units."""
        return self.folder.parent / "data"

    @property
    def tokenizer_folder(self) -> Path:
        """Where workers load the tokenizer from."""
        return self.data_folder / "tokenizer"

    def unit_folder(self, number: int) -> Path:
        """Where the finished unit lies."""
        return self.folder / f"{number:06d}"

    def run(self, number: int, unit: Unit, tokenizer: Tokenizer, progress: Progress) -> None:
        """Tokenize the unit and publish its folder. Raises: ValueError for a bad document."""
        with new_folder(self.unit_folder(number)) as aside:
            writers = {name: ShardWriter(tokenizer.end_of_text) for name in ("train", "val")}
            skipped = 0
            for name, document, text in self._parts(unit):
                if not text:
                    skipped += 1
                    continue
                ids = tokenizer.encode_to_numpy(text)
                text_bytes = len(text.encode())
                writers[name].add(document, ids, text_bytes)
                progress.add(1, len(ids) + 1, text_bytes)
            shards = {
                name: writer.save(aside, name, tokenizer.n_vocab)
                for name, writer in writers.items()
            }
            write_json(aside / "unit.json", asdict(UnitResult(skipped, **shards)))

    def _parts(self, unit: Unit) -> Iterator[tuple[Literal["train", "val"], Document, str]]:
        found = 0
        for document in islice(self.source.documents(unit), unit.documents):
            text = without_surrogates(document.text)
            for name, part in self.rule.parts(unit.first_document + found, text):
                yield name, document, part
            found += 1
        if found != unit.documents:
            raise ValueError(
                f"the source had {unit.documents} documents here when it was planned and "
                f"{found} now; it must not change while it is prepared: start again"
            )

    def result(self, number: int) -> UnitResult | None:
        """What a finished unit says, None if it is not finished."""
        path = self.unit_folder(number) / "unit.json"
        return _result_from_json(read_json(path)) if path.is_file() else None


def _result_from_json(content: dict[str, Any]) -> UnitResult:
    def entry(name: str) -> ShardEntry | None:
        return ShardEntry(**content[name]) if content[name] else None

    return UnitResult(content["skipped_empty"], entry("train"), entry("val"))
