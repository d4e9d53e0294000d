"""Reads parquet files of the Hub over the network while they are tokenized (`--stream`).

It is for machines without disk space for the files. Units and shards are the same as with
downloaded files. But no sha256 covers what is read: of 40 bytes flipped on the way, 23 gave wrong
text without an error (datasets 5.2.0). The manifest's settings contain `stream`.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from data_prep.dataset.manifest import SourceFile
from data_prep.hub.download import CURE
from data_prep.hub.listing import HubSource
from data_prep.hub.retries import RetryPolicy
from data_prep.sources.file_source import Unit
from data_prep.sources.parquet_files import bad_utf8, null_in_template, text_column
from data_prep.sources.records import BadRecord, Document
from data_prep.sources.text_fields import TextFields, text_fields
from data_prep.tokenizer import utf8

log = logging.getLogger(__name__)
_Value = str | bytes | None


@dataclass(frozen=True)
class StreamedHubSource(HubSource):
    """Reads each row group with `datasets`, and again from its start if the connection breaks."""

    repository: str = ""
    retries: RetryPolicy = RetryPolicy()

    def settings(self) -> dict[str, Any]:
        """As for files, with `stream`: the text was not checked by a sha256."""
        return {**super().settings(), "stream": True}

    def records(self, unit: Unit) -> Iterator[Document | BadRecord]:
        """The documents of a unit, in order. Raises: ValueError if the Hub does not answer."""
        fields = text_fields(self.text_key, self.template)
        for span in unit.spans:
            file = self.files[span.file]
            columns = self._columns(file, fields)
            groups = self._open(file, columns)
            row = span.first_row
            for group in range(span.start, span.stop):
                for values in self._rows(groups, file, group, columns):
                    yield _record(values, fields, Path(file.name), row, span.file)
                    row += 1

    def _columns(self, file: SourceFile, fields: TextFields) -> list[list[str]]:
        """The names that lead to each column, from the footer of the file."""
        schema, place = parquet.read_schema(self.planning_path(file)), self.planning_path(file)
        return [text_column(schema, name, str(place), fields.option) for name in fields.names]

    def _open(self, file: SourceFile, columns: list[list[str]]) -> Any:
        """The file as an iterable data set with one shard for each row group."""

        def open_file() -> Any:
            from datasets import load_dataset  # takes seconds to import, so only when it is used

            place = f"hf://datasets/{self.repository}@{self.revision}/{file.name}"
            outer = list(dict.fromkeys(column[0] for column in columns))
            return load_dataset(
                "parquet", data_files=place, split="train", streaming=True, columns=outer
            ).reshard()

        return self._with_retries(file, open_file)

    def _rows(
        self, groups: Any, file: SourceFile, group: int, columns: list[list[str]]
    ) -> list[list[_Value]]:
        """The values of all rows of a row group, so that nothing of a read that fails is used."""

        def read() -> list[list[_Value]]:
            shard = groups.shard(num_shards=groups.num_shards, index=group)
            return [[_value(row, column) for column in columns] for row in shard]

        return self._with_retries(file, read)

    def _with_retries(self, file: SourceFile, attempt: Any) -> Any:
        # `datasets` retries by itself, but after 23 s of status 503 it raises (5.2.0).
        for failures in range(1, self.retries.attempts + 1):
            try:
                return attempt()
            except Exception as error:  # `datasets` raises the exceptions of many layers below it
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                log.warning(
                    "%s: attempt %d of %d to stream it failed (%s)",
                    file.name,
                    failures,
                    self.retries.attempts,
                    reason,
                )
                if failures == self.retries.attempts:
                    raise ValueError(
                        f"{self.repository}/{file.name} cannot be streamed ({reason}); {CURE}"
                    ) from error
                backed_off = self.retries.first_wait * 2 ** (failures - 1)
                time.sleep(min(backed_off, self.retries.max_wait))


def _value(row: Any, column: list[str]) -> _Value:
    for name in column:
        row = None if row is None else row[name]
    return row


def _record(
    values: list[_Value], fields: TextFields, path: Path, row: int, file: int
) -> Document | BadRecord:
    """The document of a row, as ParquetFormat makes it."""
    found = [utf8(value) if isinstance(value, str) else value for value in values]
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        if not fields.is_template:
            return Document(file, row, b"")
        bad = null_in_template(path, row, fields.names[found.index(None)])
    else:
        text = fields.joined(known)
        is_text = all(isinstance(value, str) for value in values)
        bad = None if is_text else bad_utf8(text, path, row)
        if bad is None:
            return Document(file, row, text)
    bad.file = file
    return bad
