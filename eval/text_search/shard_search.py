"""Word sequences looked for in all documents of a data set's split, over several processes.

Tokens are decoded piece by piece, so memory does not grow with the data set. The workers divide
stretches of whole documents among themselves; how many they are does not change what is found.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from data_prep.dataset.manifest import SplitName
from data_prep.dataset.shards import DataSet, TokenShards
from data_prep.preparation.console import ProgressBar
from data_prep.preparation.pool import follow_parent
from data_prep.tokenizer import Tokenizer
from eval.text_search.ngrams import DOCUMENT_BREAK, NOT_FOUND, Patterns, Search

RANGE_TOKENS = 1 << 22  # about 20 MB of text: half a second of work
PIECE_TOKENS = 1 << 16  # arrays of a piece are a few MB each
SPLIT_CHARACTER = "\ufffd"  # what a token decodes to that begins within a character

Found = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class DocumentRange:
    """Documents that one worker searches at a time: some of one shard."""

    shard: int
    documents: range
    """Counted within the shard."""
    tokens: range
    """Counted within the shard."""
    shard_begins: int
    """Documents of the split before the shard."""


def search_split(
    data: DataSet, split: SplitName, kinds: Sequence[Patterns], workers: int
) -> list[np.ndarray]:
    """The first document of the split that holds each needle, or NOWHERE, for each kind of them.

    Raises: ValueError if the split has no documents or a worker died.
    """
    entry = data.manifest.split(split)
    data.split(split)  # says how to get one, if there is none
    firsts = [np.full(len(patterns.hashes), NOT_FOUND) for patterns in kinds]
    bar = ProgressBar(entry.text_bytes, 0)
    try:
        for stretch, found in _searched(data, split, kinds, workers):
            for first, (patterns, documents) in zip(firsts, found, strict=True):
                first[patterns] = np.minimum(first[patterns], documents)
            # The manifest knows the text bytes of the split, not of a stretch.
            text_bytes = entry.text_bytes * (bar.tokens + len(stretch.tokens)) // entry.tokens
            bar.add(len(stretch.documents), len(stretch.tokens), text_bytes - bar.text_bytes)
    finally:
        bar.close()
    return firsts


def _searched(
    data: DataSet, split: SplitName, kinds: Sequence[Patterns], workers: int
) -> Iterator[tuple[DocumentRange, Found]]:
    """Every stretch with what was found in it."""
    todo = list(_document_ranges(data, split))
    if min(workers, len(todo)) <= 1:
        searcher = Searcher(data, split, kinds)
        yield from ((stretch, searcher.search(stretch)) for stretch in todo)
        return
    executor = ProcessPoolExecutor(
        min(workers, len(todo)),
        multiprocessing.get_context("spawn"),
        _start_worker,
        (data, split, kinds),
    )
    try:
        yield from zip(todo, executor.map(_search, todo), strict=True)
    except BrokenProcessPool as error:
        raise ValueError(
            f"one of workers={workers} processes died, perhaps for lack of memory (each needs "
            "about half a gigabyte); run it again with fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _document_ranges(data: DataSet, split: SplitName) -> Iterator[DocumentRange]:
    shard_begins = 0
    for number, shard in enumerate(data.manifest.split(split).shards):
        ends = np.cumsum(_one_shard(data, split, number).lengths, dtype=np.int64)
        # A stretch ends with the document that fills it.
        marks = np.arange(RANGE_TOKENS, int(ends[-1]), RANGE_TOKENS)
        cuts = np.unique([0, *(np.searchsorted(ends, marks) + 1), shard.documents])
        for first, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            begin = int(ends[first - 1]) if first else 0
            tokens = range(begin, int(ends[stop - 1]))
            yield DocumentRange(number, range(first, stop), tokens, shard_begins)
        shard_begins += shard.documents


def _one_shard(data: DataSet, split: SplitName, number: int) -> TokenShards:
    """A split of one shard: lengths of all shards together need not fit in memory."""
    shard = data.manifest.split(split).shards[number]
    totals = {"tokens": shard.tokens, "documents": shard.documents}
    return TokenShards(data.folder, replace(data.manifest.split(split), shards=(shard,), **totals))


class Searcher:
    """Searches stretches of a split; keeps the tokenizer between them."""

    def __init__(self, data: DataSet, split: SplitName, kinds: Sequence[Patterns]) -> None:
        self._data = data
        self._split: SplitName = split
        self._kinds = kinds
        self._tokenizer = data.tokenizer()

    def search(self, stretch: DocumentRange) -> Found:
        """Of each kind, the needles that occur in the stretch and the first document of each."""
        shards = _one_shard(self._data, self._split, stretch.shard)
        search = Search(self._kinds, stretch.shard_begins + stretch.documents.start)
        for text in decode_range(shards, self._tokenizer, stretch):
            search.feed(text)
        search.feed("", last=True)
        seen = [np.flatnonzero(finder.first != NOT_FOUND) for finder in search.finders]
        return [(i, f.first[i]) for i, f in zip(seen, search.finders, strict=True)]


def decode_range(
    shards: TokenShards, tokenizer: Tokenizer, stretch: DocumentRange
) -> Iterator[str]:
    """The stretch's text in pieces of some 300,000 characters, DOCUMENT_BREAK before documents."""
    lengths = shards.lengths[stretch.documents.start : stretch.documents.stop]
    opens = stretch.tokens.start + np.cumsum(lengths, dtype=np.int64) - lengths
    start, stop = stretch.tokens.start, stretch.tokens.stop
    while start < stop:
        # One token more, to see whether the piece ends between two characters.
        ids = shards.read(start, min(PIECE_TOKENS + 1, stop - start)).tolist()
        if start + len(ids) < stop:
            ids = ids[: _last_boundary(ids, tokenizer)]
        inside = opens[slice(*np.searchsorted(opens, (start, start + len(ids))))] - start
        bounds = [*inside.tolist(), len(ids)]
        texts = [tokenizer.decode(ids[: bounds[0]])]
        # The token that opens a document is no text.
        texts += [tokenizer.decode(ids[opening + 1 : end]) for opening, end in pairwise(bounds)]
        yield DOCUMENT_BREAK.join(texts)
        start += len(ids)


def _last_boundary(ids: list[int], tokenizer: Tokenizer) -> int:
    """The last position within `ids` before which a character ends."""
    seam = len(ids) - 1
    while seam > 1 and tokenizer.decode([ids[seam]]).startswith(SPLIT_CHARACTER):
        seam -= 1
    return seam


_searcher: Searcher | None = None


def _start_worker(data: DataSet, split: SplitName, kinds: Sequence[Patterns]) -> None:
    global _searcher
    follow_parent()
    _searcher = Searcher(data, split, kinds)


def _search(stretch: DocumentRange) -> Found:
    assert _searcher is not None
    return _searcher.search(stretch)
