"""Tokens that others have made become shards: ids unchanged, documents by their separator.

The files of a split are one stream, in the order of their names, so that a document may go on in
the next file. Each end-of-text begins a document; where it closes them instead, the documents are
the same. Only the first may lack it, if its beginning is in a file that is not there.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.dataset.manifest import ShardEntry, SplitEntry, SplitName, split_entry
from data_prep.dataset.shards import LENGTH, PLACE, shard_entry
from data_prep.dataset.token_writer import TokenWriter
from data_prep.preparation.console import ProgressBar
from data_prep.preparation.duplicates import DocumentHashes
from data_prep.preparation.ready.token_arrays import TokenArray
from data_prep.tokenizer import Tokenizer
from storage.atomic import save_array
from storage.byte_pairs import token_dtype

_TOKENS_AT_ONCE = 1 << 22
_LONGEST = 1 << 28  # tokens without a separator: such a file has none
_SAMPLED_AT_ONCE = 8
_FEWEST_SAMPLED = 32  # documents before anything is said about the tokenizer
_LEAST_AGREED = 0.9


@dataclass
class _Agreement:
    """Of how many sampled documents the tokenizer makes the ids that they have."""

    sampled: int = 0
    agreed: int = 0

    def compare(self, documents: Sequence[np.ndarray], tokenizer: Tokenizer) -> None:
        """Decode documents and encode them again. Raises: ValueError if nearly none agrees."""
        for ids in documents:
            text = tokenizer.to_bytes(ids.tolist()).decode("utf-8", "replace")
            self.sampled += 1
            self.agreed += np.array_equal(tokenizer.encode_to_numpy(text), ids)
        if self.sampled >= _FEWEST_SAMPLED:
            self.check(tokenizer)

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises: ValueError if too few of the documents agree."""
        if self.agreed < _LEAST_AGREED * self.sampled:
            raise ValueError(
                f"of {self.sampled} documents only {self.agreed} have the ids that {tokenizer.name}"
                " makes of their text, so another tokenizer made them; name it with --tokenizer"
            )


@dataclass
class TakenSplit:
    """What became of the files of one split."""

    entry: SplitEntry
    empty: int
    """How many separators are followed by the next one, or by the end."""
    without_beginning: bool
    """Whether the first document got the end-of-text that it lacked."""


@dataclass
class _Shard:
    """One shard that is being written."""

    folder: Path
    name: str
    counts: np.ndarray
    text_bytes: int = 0
    lengths: list[np.ndarray] = field(default_factory=list)
    places: array = field(default_factory=lambda: array("I"))

    def __post_init__(self) -> None:
        path, dtype = self.folder / f"{self.name}.npy", token_dtype(len(self.counts))
        self.file = TokenWriter(path, dtype)

    def close(self) -> ShardEntry:
        self.file.close()
        places = np.array(self.places, PLACE).reshape(-1, 2)
        save_array(self.folder / f"{self.name}.lengths.npy", np.concatenate(self.lengths))
        save_array(self.folder / f"{self.name}.source.npy", places)
        return shard_entry(self.folder, self.name, self.text_bytes)


class TokenTaker:
    """Writes the shards of both splits into the folder of a data set that is being made."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, shard_tokens: int, bar: ProgressBar
    ) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.shard_tokens = shard_tokens
        self.bar = bar
        self.agreement = _Agreement()
        self.hashes = DocumentHashes()

    def take(self, split: SplitName, files: Sequence[tuple[int, TokenArray]]) -> TakenSplit:
        """Write one split from its files, each with its number in the source.

        Raises: ValueError for an id beyond the vocabulary, a stream without separators, or ids
        that the tokenizer does not make of their text.
        """
        shards: list[ShardEntry] = []
        counts = np.zeros(self.tokenizer.n_vocab, np.int64)
        shard: _Shard | None = None
        documents = _Documents(files, self.tokenizer)
        for tokens, lengths, places in documents:
            if shard is None:
                shard = _Shard(self.folder, f"{split}_{len(shards):06d}", counts)
            self._append(shard, tokens, lengths, places)
            if shard.file.tokens >= self.shard_tokens:
                shards.append(shard.close())
                shard = None
        if shard is not None:
            shards.append(shard.close())
        return TakenSplit(
            split_entry(tuple(shards), counts), documents.empty, documents.without_beginning
        )

    def _append(
        self, shard: _Shard, tokens: np.ndarray, lengths: np.ndarray, places: np.ndarray
    ) -> None:
        """Add whole documents to a shard. Shapes: (tokens,), (documents,), (documents, 2)."""
        shard.file.write(tokens)
        shard.lengths.append(lengths.astype(LENGTH))
        shard.places.extend(places.ravel().tolist())
        shard.counts += np.bincount(tokens, minlength=len(shard.counts))
        ends = np.cumsum(lengths)
        text, stops = self.tokenizer.bytes_and_ends(tokens)
        start = 0
        for stop in stops[ends - 1].tolist():
            self.hashes.add(text[start:stop])
            start = stop
        shard.text_bytes += len(text)
        chosen = np.linspace(0, len(lengths) - 1, min(_SAMPLED_AT_ONCE, len(lengths))).astype(int)
        parts = [tokens[ends[i] - lengths[i] + 1 : ends[i]] for i in dict.fromkeys(chosen.tolist())]
        self.agreement.compare(parts, self.tokenizer)
        self.bar.add(len(lengths), len(tokens), len(text))


class _Documents:
    """The documents of files, in batches: tokens, lengths, and (file, row) of each."""

    def __init__(self, files: Sequence[tuple[int, TokenArray]], tokenizer: Tokenizer) -> None:
        self.files = files
        self.tokenizer = tokenizer
        self.empty = 0
        self.without_beginning = False

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        separator = self.tokenizer.end_of_text
        rest, rest_place = np.empty(0, self.tokenizer.token_dtype), (0, 0)
        for number, (file, array_) in enumerate(self.files):
            row = 0
            for ids in self._checked(array_):
                if number == 0 and row == 0 and not len(rest) and ids[0] != separator:
                    self.without_beginning = True
                    rest, rest_place, row = np.array([separator], rest.dtype), (file, 0), 1
                held = len(rest)
                ids = np.concatenate([rest, ids])
                starts = np.flatnonzero(ids == separator)
                begun = len(starts) - (held > 0)  # in this piece of this file
                places = np.empty((len(starts), 2), PLACE)
                places[:, 0] = file
                places[:, 1] = np.arange(row - (held > 0), row + begun)
                if held:
                    places[0] = rest_place
                row += begun
                last = int(starts[-1])
                rest, rest_place = ids[last:], tuple(places[-1].tolist())
                if len(rest) > _LONGEST:
                    raise ValueError(
                        f"{array_.path} has {_LONGEST} tokens without the separator "
                        f"{separator} of {self.tokenizer.name}, so its documents cannot be found; "
                        "name the tokenizer that made them with --tokenizer"
                    )
                yield from self._whole(ids[:last], np.diff(starts), places[:-1])
        yield from self._whole(rest, np.array([len(rest)]), np.array([rest_place], PLACE))

    def _whole(
        self, tokens: np.ndarray, lengths: np.ndarray, places: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The documents that are not empty, unless there is none."""
        full = lengths > 1
        self.empty += int((~full).sum())
        if full.any():
            kept = tokens if full.all() else tokens[np.repeat(full, lengths)]
            yield kept, lengths[full], places[full]

    def _checked(self, file: TokenArray) -> Iterator[np.ndarray]:
        """The tokens of a file as shards store them, piece by piece."""
        for start in range(0, file.tokens, _TOKENS_AT_ONCE):
            ids = file.read(start, _TOKENS_AT_ONCE)
            wrong = np.flatnonzero((ids < 0) | (ids >= self.tokenizer.n_vocab))
            if len(wrong):
                at = int(wrong[0])
                raise ValueError(
                    f"{file.path}: token {start + at} is {ids[at]}, but {self.tokenizer.name} has "
                    f"the ids 0 to {self.tokenizer.n_vocab - 1}; name the tokenizer that made them "
                    "with --tokenizer"
                )
            yield ids.astype(self.tokenizer.token_dtype)
