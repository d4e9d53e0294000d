"""Reads parquet files of the Hub over the network while they are tokenized (`--stream`).

It is for machines without disk space for the files. Units and shards are the same as with
downloaded files. But no sha256 covers what is read: of 40 bytes flipped on the way, 23 gave wrong
text without an error (datasets 5.2.0). The manifest's settings contain `stream`.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.dataset.manifest import SourceFile
from data_prep.hub.download import CURE
from data_prep.hub.listing import HubSource
from data_prep.hub.retries import RetryPolicy
from data_prep.sources.file_source import Unit
from data_prep.sources.records import Document
from data_prep.tokenizer import utf8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamedHubSource(HubSource):
    """Reads each row group with `datasets`, and again from its start if the connection breaks."""

    repository: str = ""
    retries: RetryPolicy = RetryPolicy()

    def settings(self) -> dict[str, Any]:
        """As for files, with `stream`: the text was not checked by a sha256."""
        return {**super().settings(), "stream": True}

    def records(self, unit: Unit) -> Iterator[Document]:
        """The documents of a unit, in order. Raises: ValueError if the Hub does not answer."""
        for span in unit.spans:
            groups = self._open(self.files[span.file])
            row = span.first_row
            for group in range(span.start, span.stop):
                for text in self._texts(groups, self.files[span.file], group):
                    yield Document(span.file, row, utf8(text or ""))
                    row += 1

    def _open(self, file: SourceFile) -> Any:
        """The file as an iterable data set with one shard for each row group."""

        def open_file() -> Any:
            from datasets import load_dataset  # takes seconds to import, so only when it is used

            place = f"hf://datasets/{self.repository}@{self.revision}/{file.name}"
            columns = [self.text_key]
            return load_dataset(
                "parquet", data_files=place, split="train", streaming=True, columns=columns
            ).reshard()

        return self._with_retries(file, open_file)

    def _texts(self, groups: Any, file: SourceFile, group: int) -> list[str | None]:
        """All texts of one row group, so that nothing of a read that fails is used."""

        def read() -> list[str | None]:
            shard = groups.shard(num_shards=groups.num_shards, index=group)
            return [row[self.text_key] for row in shard]

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
