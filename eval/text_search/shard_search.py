"""Searches all documents of a data set's split for patterns, in several processes.

Tokens are decoded piece by piece, so memory does not grow with the data set. Workers search ranges
of whole documents; the number of workers does not change what is found.
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
from data_prep.tokenizer import Tokenizer
from data_prep.worker_processes import follow_parent
from eval.text_search.ngrams import DOCUMENT_BREAK, NOT_FOUND, Patterns, Search

RANGE_TOKENS = 1 << 22  # about 20 MB of text: half a second of work
PIECE_TOKENS = 1 << 16  # the arrays of a piece take a few MB each
_SPLIT_CHARACTER = "\ufffd"  # decoding gives this for a token that starts inside a character

_Found = list[tuple[np.ndarray, np.ndarray]]
"""For each kind of patterns: the indices of those found, and the first document of each."""


@dataclass(frozen=True)
class _DocumentRange:
    """Consecutive documents of one shard that one worker searches at a time."""

    shard: int
    documents: range
    """Indices within the shard."""
    tokens: range
    """Indices within the shard."""
    shard_begins: int
    """Number of documents in the shards before this one."""


def search_split(
    data: DataSet, split: SplitName, kinds: Sequence[Patterns], workers: int
) -> list[np.ndarray]:
    """For each kind of patterns, the first document of the split with each, or NOT_FOUND.

    Raises: ValueError if the split has no documents or a worker process died.
    """
    entry = data.manifest.split(split)
    data.split(split)  # raises if the split is empty, and says how to prepare one
    firsts = [np.full(len(patterns.hashes), NOT_FOUND) for patterns in kinds]
    bar = ProgressBar(entry.text_bytes, 0)
    try:
        for searched, found in _searched(data, split, kinds, workers):
            for first, (patterns, documents) in zip(firsts, found, strict=True):
                first[patterns] = np.minimum(first[patterns], documents)
            # The manifest has the text bytes of the split only, not of a range of documents.
            text_bytes = entry.text_bytes * (bar.tokens + len(searched.tokens)) // entry.tokens
            bar.add(len(searched.documents), len(searched.tokens), text_bytes - bar.text_bytes)
    finally:
        bar.close()
    return firsts


def _searched(
    data: DataSet, split: SplitName, kinds: Sequence[Patterns], workers: int
) -> Iterator[tuple[_DocumentRange, _Found]]:
    """Every range of documents with what was found in it, in order."""
    todo = list(_document_ranges(data, split))
    if min(workers, len(todo)) <= 1:
        searcher = _Searcher(data, split, kinds)
        yield from ((part, searcher.search(part)) for part in todo)
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


def _document_ranges(data: DataSet, split: SplitName) -> Iterator[_DocumentRange]:
    shard_begins = 0
    for number, shard in enumerate(data.manifest.split(split).shards):
        ends = np.cumsum(_one_shard(data, split, number).lengths, dtype=np.int64)
        # A range ends with the document that reaches RANGE_TOKENS.
        marks = np.arange(RANGE_TOKENS, int(ends[-1]), RANGE_TOKENS)
        cuts = np.unique([0, *(np.searchsorted(ends, marks) + 1), shard.documents])
        for first, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            begin = int(ends[first - 1]) if first else 0
            tokens = range(begin, int(ends[stop - 1]))
            yield _DocumentRange(number, range(first, stop), tokens, shard_begins)
        shard_begins += shard.documents


def _one_shard(data: DataSet, split: SplitName, number: int) -> TokenShards:
    """The split reduced to one shard, so that only its document lengths are in memory."""
    shard = data.manifest.split(split).shards[number]
    totals = {"tokens": shard.tokens, "documents": shard.documents}
    entry = replace(data.manifest.split(split), shards=(shard,), **totals)
    return TokenShards(data.folder, entry, data.manifest.token_dtype)


class _Searcher:
    """Searches ranges of a split one after the other, with one tokenizer."""

    def __init__(self, data: DataSet, split: SplitName, kinds: Sequence[Patterns]) -> None:
        self._data = data
        self._split: SplitName = split
        self._kinds = kinds
        self._tokenizer = data.tokenizer()

    def search(self, part: _DocumentRange) -> _Found:
        """Search one range of documents."""
        shards = _one_shard(self._data, self._split, part.shard)
        search = Search(self._kinds, part.shard_begins + part.documents.start)
        for text in _decode_range(shards, self._tokenizer, part):
            search.feed(text)
        search.feed("", last=True)
        seen = [np.flatnonzero(finder.first != NOT_FOUND) for finder in search.finders]
        return [(i, f.first[i]) for i, f in zip(seen, search.finders, strict=True)]


def _decode_range(shards: TokenShards, tokenizer: Tokenizer, part: _DocumentRange) -> Iterator[str]:
    """The text in pieces of about 300,000 characters, a DOCUMENT_BREAK before each document."""
    lengths = shards.lengths[part.documents.start : part.documents.stop]
    starts = part.tokens.start + np.cumsum(lengths, dtype=np.int64) - lengths
    start, stop = part.tokens.start, part.tokens.stop
    while start < stop:
        # One token more than a piece shows whether the piece ends between two characters.
        ids = shards.read(start, min(PIECE_TOKENS + 1, stop - start)).tolist()
        if start + len(ids) < stop:
            ids = ids[: _last_boundary(ids, tokenizer)]
        inside = starts[slice(*np.searchsorted(starts, (start, start + len(ids))))] - start
        bounds = [*inside.tolist(), len(ids)]
        texts = [tokenizer.decode(ids[: bounds[0]])]
        # The first token of a document is end-of-text, which is not text.
        texts += [tokenizer.decode(ids[begin + 1 : end]) for begin, end in pairwise(bounds)]
        yield DOCUMENT_BREAK.join(texts)
        start += len(ids)


def _last_boundary(ids: list[int], tokenizer: Tokenizer) -> int:
    """The last index within `ids` at which a character starts."""
    boundary = len(ids) - 1
    while boundary > 1 and tokenizer.decode([ids[boundary]]).startswith(_SPLIT_CHARACTER):
        boundary -= 1
    return boundary


_searcher: _Searcher | None = None


def _start_worker(data: DataSet, split: SplitName, kinds: Sequence[Patterns]) -> None:
    global _searcher
    follow_parent()
    _searcher = _Searcher(data, split, kinds)


def _search(part: _DocumentRange) -> _Found:
    assert _searcher is not None
    return _searcher.search(part)
