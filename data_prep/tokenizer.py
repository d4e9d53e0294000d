"""The tokenizer: text to token ids and back, with ranks of GPT-2 or of a path.

tiktoken encodes, or Hugging Face's `tokenizers` where a tokenizer.json defines the ids. Nothing is
downloaded: the ranks of GPT-2 are a file in storage/.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from storage.byte_pairs import GPT2_PATTERN, Additions, BytePairs, gpt2_byte_pairs, token_dtype
from storage.vocabularies.any_tokenizer import read_any_tokenizer
from storage.vocabularies.folder import read_byte_pairs, write_byte_pairs
from storage.vocabularies.library import LIBRARY, LibraryTokenizer

# tiktoken's regular expression fails on a run of a million whitespace characters, where it looks
# back from the end of `\s+(?!\S)`. The class holds what Rust calls whitespace; Python's has more.
_LONG_RUN = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{100000,}")


class Tokenizer:
    """A byte-pair encoding with special tokens, which no text gives: at least end-of-text."""

    def __init__(
        self, name: str, pattern: str, ranks: bytes, additions: Additions | None = None
    ) -> None:
        """`ranks` is the content of a .tiktoken file: lines of base64 of a token, space, rank."""
        pairs = BytePairs(name, pattern, ranks, additions)
        self.name = name
        self.pattern = pattern
        self.ranks = ranks
        self.additions = additions
        self.ranks_sha256 = pairs.ranks_sha256
        self.end_of_text = pairs.end_of_text
        self.n_vocab = pairs.n_vocab
        self.token_dtype = token_dtype(pairs.n_vocab)
        self.reference = LIBRARY if additions and additions.tokenizer_json else "tiktoken"
        """What defines the ids."""
        self._pairs = pairs
        if self.reference != LIBRARY:
            self._encoding = self._tiktoken()

    def _tiktoken(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            self.name,
            pat_str=self.pattern,
            mergeable_ranks=dict(self._pairs.rank_of),
            special_tokens=self._pairs.special,
        )

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        """Built at once where tiktoken defines the ids, else when it is first used."""
        return self._tiktoken()

    @cached_property
    def _library(self) -> LibraryTokenizer:
        assert self.additions is not None
        return LibraryTokenizer(self.additions.tokenizer_json)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[Any, ...]]:
        return Tokenizer, (self.name, self.pattern, self.ranks, self.additions)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; the name of a special token in it is ordinary text."""
        # Not tiktoken's `encode_ordinary`: it panics where `encode_to_numpy` raises ValueError.
        return self.encode_to_numpy(text).tolist()

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """The ids that `encode` gives, as shards store them.

        Raises: ValueError for a text that is refused; with GPT-2's pattern tiktoken refuses none.
        """
        if self.reference == LIBRARY:
            ids = self._library.encode(without_surrogates(text))
            return ids.astype(self.token_dtype, copy=False)
        return self.encode_by_ranks(text)

    def encode_by_ranks(self, text: str) -> np.ndarray:
        """The ids that tiktoken gives, with a pattern that splits text."""
        # On one core, tiktoken gives 5.1M tokens/s this way and 3.8M by way of a list.
        try:
            # With the default, tiktoken refuses a text that contains <|endoftext|>.
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encode_by_ranks(without_surrogates(text))
        except ValueError:
            if self.pattern != GPT2_PATTERN or not _LONG_RUN.search(text):
                raise
            ids = np.concatenate(list(self._around_long_runs(text)))
        return ids.astype(self.token_dtype, copy=False)

    def _around_long_runs(self, text: str) -> Iterator[np.ndarray]:
        """The ids of a text whose long runs of whitespace are not given to the pattern."""
        # GPT-2's pattern takes such a run as one piece, without its last character if text follows.
        at = 0
        for run in _LONG_RUN.finditer(text):
            stop = run.end() if run.end() == len(text) else run.end() - 1
            yield self._encoding.encode_to_numpy(text[at : run.start()], disallowed_special=())
            piece = text[run.start() : stop].encode()
            yield np.array(self._encoding._encode_single_piece(piece), np.uint32)
            at = stop
        yield self._encoding.encode_to_numpy(text[at:], disallowed_special=())

    def refuses(self, text: str) -> str | None:
        """Why the text cannot be encoded; None if it can, as always with GPT-2's pattern."""
        if self.pattern == GPT2_PATTERN or self.reference == LIBRARY:
            return None
        try:
            self.encode_to_numpy(text)
        except ValueError as error:
            return str(error)
        return None

    def normalised(self, text: bytes) -> bytes:
        """The text as it is encoded: of some tokenizers with composed characters (NFC)."""
        if self.reference != LIBRARY or text.isascii():
            return text
        return self._library.normalised(text.decode()).encode()

    @property
    def words(self) -> tuple[str, ...]:
        """Texts that are one token wherever they occur, found before a text is split."""
        return tuple(text for text, _ in self.additions.words) if self.additions else ()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.to_bytes(ids).decode(errors="replace")

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`, which may end inside a character; the names of special tokens."""
        written = self._written
        return b"".join([written[token] for token in ids])

    @cached_property
    def _written(self) -> list[bytes]:
        """What each id is written as; U+FFFD for an id that no token has."""
        written = [token or "\ufffd".encode() for token in self._pairs.tokens]
        for name, token in self._pairs.special.items():
            written[token] = name.encode()
        return written

    def token_bytes(self) -> np.ndarray:
        """How many bytes of text each id has, 0 if special. Shapes: (n_vocab,), int32."""
        return self._token_bytes.copy()

    def bytes_and_ends(self, ids: np.ndarray) -> tuple[bytes, np.ndarray]:
        """The bytes of many ids at once, and where those of each id end. Shapes: (N,) -> (N,)."""
        begins = self._byte_offsets[ids]
        sizes = self._byte_offsets[ids.astype(np.int64) + 1] - begins
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        places = np.arange(total) + np.repeat(begins - (ends - sizes), sizes)
        return self._joined_bytes[places].tobytes(), ends

    @cached_property
    def _joined_bytes(self) -> np.ndarray:
        return np.frombuffer(b"".join(self._pairs.tokens), np.uint8)

    @cached_property
    def _byte_offsets(self) -> np.ndarray:
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self._token_bytes)])

    @cached_property
    def _token_bytes(self) -> np.ndarray:
        return np.array([*map(len, self._pairs.tokens)], np.int32)

    def save(self, folder: Path) -> None:
        """Write the folder that `load_tokenizer` reads."""
        write_byte_pairs(folder, self._pairs)


def without_surrogates(text: str) -> str:
    """`text` with lone surrogates replaced by U+FFFD, since UTF-8 cannot encode them."""
    return utf8(text).decode()


def utf8(text: str) -> bytes:
    """`text` in UTF-8, with lone surrogates replaced by U+FFFD, since UTF-8 cannot encode them."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


@cache
def gpt2_tokenizer() -> Tokenizer:
    """OpenAI's GPT-2 tokenizer: 50,257 ids, end-of-text 50256."""
    pairs = gpt2_byte_pairs()
    return Tokenizer(pairs.name, pairs.pattern, pairs.ranks)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote to `folder`.

    Raises: ValueError if it is missing or damaged.
    """
    return tokenizer_of(read_byte_pairs(folder))


def named_tokenizer(place: Path | None, end_of_text: str | None = None) -> Tokenizer:
    """GPT-2's tokenizer for None, or `gpt2` where nothing has that name; else that of a path.

    `end_of_text`: the special token that opens each document, where that is not plain.
    Raises: ValueError if there is no tokenizer at the path, or it cannot be used.
    """
    if place is None or (str(place) == "gpt2" and not place.exists()):
        if end_of_text is not None:
            raise ValueError(
                f"end_of_text={end_of_text} is of a tokenizer that --tokenizer names, and it is "
                "not given; omit --end-of-text, or give --tokenizer"
            )
        return gpt2_tokenizer()
    return tokenizer_of(read_any_tokenizer(place, end_of_text))


@lru_cache(maxsize=4)  # files are read and checked each time, but the encoding is built once
def tokenizer_of(pairs: BytePairs) -> Tokenizer:
    """The tokenizer that encodes with these ranks."""
    return Tokenizer(pairs.name, pairs.pattern, pairs.ranks, pairs.additions)
