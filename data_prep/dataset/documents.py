"""The documents of one split as a person sees them: text, length, and where each came from."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from data_prep.dataset.manifest import SplitName
from data_prep.dataset.shards import DataSet


class Documents:
    """Finds documents of a split, numbered in file order from 0. No shard is loaded as a whole."""

    def __init__(self, data: DataSet, split: SplitName) -> None:
        self.data = data
        self.split: SplitName = split
        self.shards = data.split(split)
        self.tokenizer = data.tokenizer()
        self._places = list(self.shards.source_places())
        # Number of the first document of each shard.
        self._firsts = [0, *accumulate(len(places) for places in self._places)]

    def source(self, document: int) -> tuple[str, int]:
        """The source file of a document, and its row there, from 0."""
        if not 0 <= document < self.shards.documents:
            kind = {"train": "training", "val": "validation"}[self.split]
            raise ValueError(
                f"document {document} is not one of the {self.shards.documents} of {kind}, from 0"
            )
        shard = bisect_right(self._firsts, document) - 1
        file, row = self._places[shard][document - self._firsts[shard]].tolist()
        files = self.data.manifest.source.files
        if file >= len(files):
            name = self.data.manifest.split(self.split).shards[shard].name
            raise ValueError(
                f"{self.data.folder / name}.source.npy names source file {file} of {len(files)}; "
                "copy it again or prepare the data set again"
            )
        return files[file].name, row

    def rows_of(self, file: int, row: int) -> Iterator[int]:
        """The documents of a row of a source file."""
        for first, places in zip(self._firsts, self._places, strict=False):
            hits = np.flatnonzero((places[:, 0] == file) & (places[:, 1] == row))
            yield from (first + int(hit) for hit in hits)

    def text(self, document: int, characters: int) -> str:
        """The first `characters` of a document's text; 0: all of it."""
        start = int(self.shards.document_starts(np.array([document]))[0]) + 1  # behind end-of-text
        length = int(self.shards.lengths[document]) - 1
        # No more tokens than characters: a token is rarely less than a character.
        ids = self.shards.read(start, min(length, characters) if characters else length)
        text = self.tokenizer.decode(ids.tolist())
        return text[:characters] if characters else text

    def tokens_by_source(self) -> list[tuple[str, int, int]]:
        """Each source file that has documents here: its name, documents and tokens."""
        files = self.data.manifest.source.files
        count = np.zeros(len(files), np.int64)
        tokens = np.zeros(len(files), np.int64)
        for first, places in zip(self._firsts, self._places, strict=False):
            lengths = self.shards.lengths[first : first + len(places)]
            file = np.minimum(places[:, 0], len(files) - 1)
            count += np.bincount(file, minlength=len(files))
            # Sums in float64 are exact: a shard has far fewer than 2**53 tokens.
            tokens += np.bincount(file, lengths, minlength=len(files)).astype(np.int64)
        return [
            (one.name, int(count[i]), int(tokens[i])) for i, one in enumerate(files) if count[i]
        ]
