"""Parquet files of the Hub read over the network as they are tokenized, for those without disk.

The units are those of the file route, so the shards are too; but no sha256 covers what is read, and
a byte flipped on the way is text like any other. The manifest's settings say `stream`.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.dataset.manifest import SourceFile
from data_prep.hub.download import CURE, RetryPolicy
from data_prep.hub.listing import HubSource
from data_prep.sources.file_source import Document, Unit
from data_prep.tokenizer import utf8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamSource(HubSource):
    """Reads every row group through `datasets`, again from its start if the stream breaks."""

    repository: str = ""
    patience: RetryPolicy = RetryPolicy()

    def settings(self) -> dict[str, Any]:
        """As for files, and that nothing was checked by its sha256."""
        return {**super().settings(), "stream": True}

    def documents(self, unit: Unit) -> Iterator[Document]:
        """The documents of a unit, in order. Raises: ValueError if the Hub stays away."""
        for span in unit.spans:
            groups = self._opened(self.files[span.file])
            row = span.first_row
            for group in range(span.start, span.stop):
                for text in self._texts(groups, self.files[span.file], group):
                    yield Document(span.file, row, utf8(text or ""))
                    row += 1

    def _opened(self, file: SourceFile) -> Any:
        """The file as a stream with one shard a row group."""

        def open_file() -> Any:
            from datasets import load_dataset  # costs seconds, so only where it is used

            place = f"hf://datasets/{self.repository}@{self.revision}/{file.name}"
            columns = [self.text_key]
            return load_dataset(
                "parquet", data_files=place, split="train", streaming=True, columns=columns
            ).reshard()

        return self._with_retries(file, open_file)

    def _texts(self, groups: Any, file: SourceFile, group: int) -> list[str | None]:
        """The texts of one row group, whole: so nothing of a broken read is used."""

        def read() -> list[str | None]:
            shard = groups.shard(num_shards=groups.num_shards, index=group)
            return [row[self.text_key] for row in shard]

        return self._with_retries(file, read)

    def _with_retries(self, file: SourceFile, attempt: Any) -> Any:
        for failures in range(1, self.patience.attempts + 1):
            try:
                return attempt()
            except Exception as error:  # datasets raises what its many layers raise
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                log.warning(
                    "%s: attempt %d of %d to stream it failed (%s)",
                    file.name,
                    failures,
                    self.patience.attempts,
                    reason,
                )
                if failures == self.patience.attempts:
                    raise ValueError(
                        f"{self.repository}/{file.name} cannot be streamed ({reason}); {CURE}"
                    ) from error
                backed_off = self.patience.first_wait * 2 ** (failures - 1)
                time.sleep(min(backed_off, self.patience.longest_wait))
