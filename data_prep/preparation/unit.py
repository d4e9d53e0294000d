"""Turns one unit of the source into a train shard, and a val shard if it has validation.

This runs in a worker process. The folder of a unit is complete or absent, since it is written under
a temporary name and then renamed. Tokens are written to disk batch by batch: memory holds a few
megabytes of text and 24 bytes per document.
"""

import logging
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from data_prep.dataset.manifest import ShardEntry
from data_prep.dataset.shards import LENGTH, PLACE, shard_entry
from data_prep.dataset.token_writer import TokenWriter
from data_prep.preparation.bad_records import (
    TooManyBadRecords,
    bad_in_unit,
    refused_text,
)
from data_prep.preparation.duplicates import DocumentHashes, read_text_hashes
from data_prep.preparation.encoder import (
    Encoder,
    EncoderChoice,
    EncoderMismatch,
    fast_encoder,
)
from data_prep.preparation.split import SplitRule
from data_prep.preparation.units.divide_again import divide_again
from data_prep.preparation.units.record import UnitResult, read_unit_result
from data_prep.sources.file_source import DocumentSource, Unit
from data_prep.sources.records import BadRecord, Document
from data_prep.tokenizer import Tokenizer
from storage.atomic import new_folder, save_array, write_text

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 22  # bytes of text in a batch
_NO_FAST_ENCODER = "tiktoken-only"  # while this file exists, only the reference is used


class _ProgressReporter(Protocol):
    """Where a worker reports its progress."""

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        """Add finished work. Raises: Interrupted if the preparation should stop."""
        ...


class _ShardWriter:
    """Writes the documents of one shard, in batches."""

    def __init__(
        self,
        folder: Path,
        name: str,
        encoder: Encoder,
        progress: _ProgressReporter,
        files: list[int],
    ) -> None:
        """`files` are the numbers of the unit's files; the shard counts from 0 in them."""
        self._files = files
        self._folder = folder
        self._name = name
        self._encoder = encoder
        self._progress = progress
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._file: TokenWriter | None = None
        self._text_bytes = 0
        self._lengths = array("I")
        self._places = array("I")
        self._counts = np.zeros(encoder.tokenizer.n_vocab, np.int64)

    def add(self, document: Document, text: bytes) -> None:
        """Append one document, as its tokenizer normalises it."""
        text = self._encoder.tokenizer.normalised(text)
        self._waiting.append(text)
        self._places.extend((document.file, document.row))
        self._waiting_bytes += len(text)
        if self._waiting_bytes >= BATCH_BYTES:
            self._write()

    def _write(self) -> None:
        """Encode and write the waiting documents. Raises: EncoderMismatch, or Interrupted."""
        flat = self._places[-2 * len(self._waiting) :].tolist()
        places = list(zip(flat[::2], flat[1::2], strict=True))
        tokens, lengths = self._encoder.encode(self._waiting, places)
        if self._file is None:
            path = self._folder / f"{self._name}.npy"
            self._file = TokenWriter(path, self._encoder.tokenizer.token_dtype)
        self._file.write(tokens)
        self._lengths.extend(lengths.tolist())
        self._counts += np.bincount(tokens, minlength=len(self._counts))
        self._text_bytes += self._waiting_bytes
        self._progress.add(len(self._waiting), len(tokens), self._waiting_bytes)
        self._waiting, self._waiting_bytes = [], 0

    def save(self) -> ShardEntry | None:
        """Write the rest and the other files of the shard; None if it has no document.

        Raises: EncoderMismatch, or Interrupted.
        """
        if self._waiting:
            self._write()
        if self._file is None:
            return None
        self._file.close()
        self._encoder.check_bytes(self._counts, self._text_bytes)
        folder, name = self._folder, self._name
        places = np.array(self._places, PLACE).reshape(-1, 2)
        places[:, 0] = np.searchsorted(self._files, places[:, 0])
        save_array(folder / f"{name}.lengths.npy", np.array(self._lengths, LENGTH))
        save_array(folder / f"{name}.source.npy", places)
        save_array(folder / f"{name}.counts.npy", self._counts)
        return shard_entry(folder, name, self._text_bytes)


@dataclass(frozen=True)
class UnitWork:
    """What a worker needs to turn any unit of the source into shards in `folder`."""

    source: DocumentSource
    rule: SplitRule
    folder: Path
    encoder: EncoderChoice = "auto"
    skip_bad: int = 0
    """How many bad records may be left out."""
    reference: str = "tiktoken"
    """What defines the ids; see data_prep/tokenizer.py."""

    @property
    def data_folder(self) -> Path:
        """The unfinished data set, beside the units."""
        return self.folder.parent / "data"

    @property
    def tokenizer_folder(self) -> Path:
        """The folder from which workers load the tokenizer."""
        return self.data_folder / "tokenizer"

    def unit_folder(self, unit: Unit) -> Path:
        """The folder of the finished unit."""
        return self.folder / unit.key

    @property
    def fast_encoder_disabled(self) -> bool:
        """Whether any process of this preparation has found a fault in the fast encoder."""
        return (self.folder / _NO_FAST_ENCODER).exists()

    def run(self, unit: Unit, tokenizer: Tokenizer, progress: _ProgressReporter) -> UnitResult:
        """Tokenize the unit and publish its folder.

        Raises: ValueError for a bad record, unless `skip_bad` allows it.
        """
        divided = self._divided_again(unit, tokenizer)
        if divided is not None:
            for shard in divided.shards():
                progress.add(shard.documents, shard.tokens, shard.text_bytes)
            return divided
        fast = fast_encoder(tokenizer) if self.encoder == "auto" else None
        if fast is not None and not self.fast_encoder_disabled:
            try:
                return self._tokenize(unit, Encoder(tokenizer, fast), progress)
            except EncoderMismatch as error:
                self._disable_fast_encoder(error)
        try:
            return self._tokenize(unit, Encoder(tokenizer), progress)
        except EncoderMismatch as error:
            raise ValueError(
                f"tokenizer {tokenizer.name} loses text of the source from document "
                f"{unit.first_document} on ({error.what}): its pattern does not cover the text; "
                "use another --tokenizer"
            ) from error

    def _disable_fast_encoder(self, error: EncoderMismatch) -> None:
        where = ""
        if error.place is not None:
            file, row = error.place
            where = f" in row {row} of {self.source.identity().files[file].name}"
        message = (
            f"{error.name} and {self.reference} disagree{where}: {error.what}; all that "
            f"{error.name} has encoded is encoded again by {self.reference}, and so is the rest"
        )
        log.warning("%s", message)
        write_text(self.folder / _NO_FAST_ENCODER, message + "\n")

    def _tokenize(self, unit: Unit, encoder: Encoder, progress: _ProgressReporter) -> UnitResult:
        # A folder that is there is of an encoder that was found wrong.
        shutil.rmtree(self.unit_folder(unit), ignore_errors=True)
        with new_folder(self.unit_folder(unit)) as folder:
            files = [span.file for span in unit.spans]
            writers = {
                name: _ShardWriter(folder, name, encoder, progress, files)
                for name in ("train", "val")
            }
            hashes = DocumentHashes()
            bad: list[BadRecord] = []
            skipped = 0
            for name, document, text in self._parts(unit, encoder.tokenizer, hashes, bad):
                if text:
                    writers[name].add(document, text)
                else:
                    skipped += 1
            shards = {name: writer.save() for name, writer in writers.items()}
            hashes.save(folder)
            left_out = tuple(bad_in_unit(record, files) for record in bad)
            split = self.rule.effect_on(unit)
            result = UnitResult(
                skipped, left_out, **shards, encoder=encoder.name, key=unit.key, split=split
            )
            result.write(folder)
        return result

    def _parts(
        self, unit: Unit, tokenizer: Tokenizer, hashes: DocumentHashes, bad: list[BadRecord]
    ) -> Iterator[tuple[Literal["train", "val"], Document, bytes]]:
        found = 0
        # --max-documents may have shortened the unit, but not its spans.
        for record in islice(self.source.records(unit), unit.documents):
            document = refused_text(record, self.source, tokenizer) or record
            ordinal = unit.first_document + found
            found += 1
            if isinstance(document, BadRecord):
                bad.append(document)
                if len(bad) > self.skip_bad:
                    raise TooManyBadRecords(document, self.skip_bad)
                continue
            text = document.text
            for name, part in self.rule.parts(ordinal, document.file, text, hashes.add(text)):
                yield name, document, part
        if found != unit.documents:
            raise ValueError(
                f"the source had {unit.documents} documents here when it was planned and "
                f"{found} now; it must not change while it is prepared: start again"
            )

    def result(self, unit: Unit) -> UnitResult | None:
        """The record of a finished unit; None if the unit must be made, or made again."""
        found = self._found(unit)
        return found if found and found.split == self.rule.effect_on(unit) else None

    def _found(self, unit: Unit) -> UnitResult | None:
        """The record of a unit that was finished by this threshold or another one."""
        found = read_unit_result(self.unit_folder(unit))
        if found is None or found.key != unit.key:
            return None
        suspect = self.fast_encoder_disabled and found.encoder != self.reference
        return None if suspect else found

    def _divided_again(self, unit: Unit, tokenizer: Tokenizer) -> UnitResult | None:
        """The unit by the present threshold, if it was finished by another one."""
        found, folder = self._found(unit), self.unit_folder(unit)
        if found is None or not found.has_its_shards(folder):
            return None
        in_val = read_text_hashes(folder) < np.uint64(self.rule.threshold)
        split = self.rule.effect_on(unit)
        return divide_again(folder, found, in_val, split, tokenizer.token_bytes())
