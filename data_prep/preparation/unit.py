"""One unit of work: a run of the source becomes a train shard, and a val shard if it has any.

Runs in a worker process. The unit's folder appears whole, by rename, so a unit is done or absent.
Tokens go to disk as they come: memory holds some megabytes of text and 24 bytes a document.
"""

import logging
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from data_prep.dataset.manifest import ShardEntry
from data_prep.dataset.shards import LENGTH, PLACE, shard_entry
from data_prep.dataset.token_files import TOKEN
from data_prep.preparation.duplicates import DocumentHashes
from data_prep.preparation.encoder import (
    REFERENCE,
    Encoder,
    EncoderChoice,
    EncoderMismatch,
    fast_encoder,
)
from data_prep.preparation.split import SplitRule
from data_prep.sources.file_source import Document, Source, Unit
from data_prep.tokenizer import Tokenizer
from storage.atomic import new_folder, read_json, save_array, write_json, write_text

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 22  # text that is encoded at once
FAST_IS_OFF = "tiktoken-only"  # once this file is there, no fast encoder is used any more


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
    encoder: str
    plan: str


class ShardWriter:
    """Writes the documents of one shard, in batches."""

    def __init__(self, folder: Path, name: str, encoder: Encoder, progress: Progress) -> None:
        self._folder = folder
        self._name = name
        self._encoder = encoder
        self._progress = progress
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._file: BinaryIO | None = None
        self._tokens = self._text_bytes = 0
        self._lengths = array("I")
        self._places = array("I")
        self._counts = np.zeros(encoder.tokenizer.n_vocab, np.int64)

    def add(self, document: Document, text: bytes) -> None:
        """Append one document."""
        self._waiting.append(text)
        self._places.extend((document.file, document.row))
        self._waiting_bytes += len(text)
        if self._waiting_bytes >= BATCH_BYTES:
            self._write()

    def _write(self) -> None:
        """Encode what waits. Raises: Disagreement, or Interrupted."""
        flat = self._places[-2 * len(self._waiting) :].tolist()
        places = list(zip(flat[::2], flat[1::2], strict=True))
        tokens, lengths = self._encoder.encode(self._waiting, places)
        if self._file is None:
            self._file = self._path.open("w+b")
            self._write_header()
        self._file.write(tokens.astype(TOKEN, copy=False).data)
        self._lengths.extend(lengths.tolist())
        self._counts += np.bincount(tokens, minlength=len(self._counts))
        self._tokens += len(tokens)
        self._text_bytes += self._waiting_bytes
        self._progress.add(len(self._waiting), len(tokens), self._waiting_bytes)
        self._waiting, self._waiting_bytes = [], 0

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._name}.npy"

    def _write_header(self) -> None:
        """The header that `np.save` writes; it has the same length for any number of tokens."""
        assert self._file is not None
        self._file.seek(0)
        header = {"descr": TOKEN.str, "fortran_order": False, "shape": (self._tokens,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def save(self) -> ShardEntry | None:
        """Write the rest, and how often each id occurs, if there is any document.

        Raises: Disagreement, or Interrupted.
        """
        if self._waiting:
            self._write()
        if self._file is None:
            return None
        self._write_header()
        self._file.close()
        self._encoder.check_bytes(self._counts, self._text_bytes)
        folder, name = self._folder, self._name
        places = np.array(self._places, PLACE).reshape(-1, 2)
        save_array(folder / f"{name}.lengths.npy", np.array(self._lengths, LENGTH))
        save_array(folder / f"{name}.source.npy", places)
        save_array(folder / f"{name}.counts.npy", self._counts)
        return shard_entry(folder, name, self._text_bytes)


@dataclass(frozen=True)
class UnitWork:
    """All that a worker needs to turn any unit of the source into shards in `folder`."""

    source: Source
    rule: SplitRule
    folder: Path
    plan: str
    """Fingerprint of the plan that the unit is part of; what another plan made does not count."""
    encoder: EncoderChoice = "auto"

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

    @property
    def fast_encoder_disabled(self) -> bool:
        """Whether a fast encoder was found wrong, in any process of this preparation."""
        return (self.folder / FAST_IS_OFF).exists()

    def run(self, number: int, unit: Unit, tokenizer: Tokenizer, progress: Progress) -> None:
        """Tokenize the unit and publish its folder. Raises: ValueError for a bad document."""
        fast = fast_encoder(tokenizer) if self.encoder == "auto" else None
        if fast is not None and not self.fast_encoder_disabled:
            try:
                return self._make(number, unit, Encoder(tokenizer, fast), progress)
            except EncoderMismatch as error:
                self._turn_fast_off(error)
        try:
            return self._make(number, unit, Encoder(tokenizer), progress)
        except EncoderMismatch as error:
            raise ValueError(
                f"tokenizer {tokenizer.name} loses text in unit {number} of the source "
                f"({error.what}): its pattern does not cover the text; use another --tokenizer"
            ) from error

    def _turn_fast_off(self, error: EncoderMismatch) -> None:
        where = ""
        if error.place is not None:
            file, row = error.place
            where = f" in row {row} of {self.source.identity().files[file].name}"
        message = (
            f"{error.name} and {REFERENCE} disagree{where}: {error.what}; all that {error.name} "
            f"has encoded is encoded anew by {REFERENCE}, and so is the rest"
        )
        log.warning("%s", message)
        write_text(self.folder / FAST_IS_OFF, message + "\n")

    def _make(self, number: int, unit: Unit, encoder: Encoder, progress: Progress) -> None:
        shutil.rmtree(self.unit_folder(number), ignore_errors=True)  # no longer trusted
        with new_folder(self.unit_folder(number)) as aside:
            writers = {
                name: ShardWriter(aside, name, encoder, progress) for name in ("train", "val")
            }
            hashes = DocumentHashes()
            skipped = 0
            for name, document, text in self._parts(unit, hashes):
                if text:
                    writers[name].add(document, text)
                else:
                    skipped += 1
            shards = {name: writer.save() for name, writer in writers.items()}
            hashes.save(aside)
            result = UnitResult(skipped, **shards, encoder=encoder.name, plan=self.plan)
            write_json(aside / "unit.json", asdict(result))

    def _parts(
        self, unit: Unit, hashes: DocumentHashes
    ) -> Iterator[tuple[Literal["train", "val"], Document, bytes]]:
        found = 0
        for document in islice(self.source.documents(unit), unit.documents):
            text, ordinal = document.text, unit.first_document + found
            for name, part in self.rule.parts(ordinal, document.file, text, hashes.add(text)):
                yield name, document, part
            found += 1
        if found != unit.documents:
            raise ValueError(
                f"the source had {unit.documents} documents here when it was planned and "
                f"{found} now; it must not change while it is prepared: start again"
            )

    def result(self, number: int) -> UnitResult | None:
        """What a finished unit says, None if it is not finished or no longer to be trusted."""
        path = self.unit_folder(number) / "unit.json"
        if not path.is_file():
            return None
        result = _result_from_json(read_json(path))
        distrusted = self.fast_encoder_disabled and result.encoder != REFERENCE
        return None if distrusted or result.plan != self.plan else result


def _result_from_json(content: dict[str, Any]) -> UnitResult:
    def entry(name: str) -> ShardEntry | None:
        return ShardEntry(**content[name]) if content[name] else None

    return UnitResult(
        content["skipped_empty"],
        entry("train"),
        entry("val"),
        content.get("encoder", REFERENCE),
        content.get("plan", ""),  # of an older version: made anew
    )
