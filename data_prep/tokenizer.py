"""The tokenizer: text to token ids and back, with GPT-2's ranks or those of a folder.

Nothing is downloaded: the ranks of GPT-2 are a file in storage/.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
import tiktoken

from storage.byte_pairs import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BytePairs,
    gpt2_byte_pairs,
    read_byte_pairs,
    token_dtype,
    write_byte_pairs,
)

# tiktoken's regular expression fails on a run of a million whitespace characters, where it looks
# back from the end of `\s+(?!\S)`. The class holds what Rust calls whitespace; Python's has more.
_LONG_RUN = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{100000,}")


class Tokenizer:
    """A byte-pair encoding with one special token, end-of-text, which has the last id."""

    def __init__(self, name: str, pattern: str, ranks: bytes) -> None:
        """`ranks` is the content of a .tiktoken file: lines of base64 of a token, space, rank."""
        pairs = BytePairs(name, pattern, ranks)
        self.name = name
        self.pattern = pattern
        self.ranks = ranks
        self.ranks_sha256 = pairs.ranks_sha256
        self.end_of_text = pairs.end_of_text
        self.n_vocab = pairs.n_vocab
        self.token_dtype = token_dtype(pairs.n_vocab)
        self._pairs = pairs
        self._encoding = tiktoken.Encoding(
            name,
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(pairs.tokens)},
            special_tokens={END_OF_TEXT: self.end_of_text},
        )

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[str, str, bytes]]:
        return Tokenizer, (self.name, self.pattern, self.ranks)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; a literal `<|endoftext|>` in it is ordinary text."""
        # Not tiktoken's `encode_ordinary`: it panics where `encode_to_numpy` raises ValueError.
        return self.encode_to_numpy(text).tolist()

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """The ids that `encode` gives, as shards store them.

        Raises: ValueError for a text that tiktoken refuses; with GPT-2's pattern it refuses none.
        """
        # On one core, tiktoken gives 5.1M tokens/s this way and 3.8M by way of a list.
        try:
            # With the default, tiktoken refuses a text that contains <|endoftext|>.
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encode_to_numpy(without_surrogates(text))
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
        if self.pattern == GPT2_PATTERN:
            return None
        try:
            self.encode_to_numpy(text)
        except ValueError as error:
            return str(error)
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self._encoding.decode(list(ids), errors="replace")

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`; they may end inside a character."""
        return self._encoding.decode_bytes(list(ids))

    def token_bytes(self) -> np.ndarray:
        """How many bytes each id decodes to, 0 for end-of-text. Shapes: (n_vocab,), int32."""
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
        return np.array([*map(len, self._pairs.tokens), 0], np.int32)

    def save(self, folder: Path) -> None:
        """Write `ranks.tiktoken` and `meta.json`, which `load_tokenizer` reads."""
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
    pairs = read_byte_pairs(folder)
    return _tokenizer(pairs.name, pairs.pattern, pairs.ranks)


def named_tokenizer(folder: Path | None) -> Tokenizer:
    """GPT-2's tokenizer for None, or `gpt2` where nothing has that name; else the folder's.

    Raises: ValueError if the folder holds none.
    """
    if folder is None or (str(folder) == "gpt2" and not folder.exists()):
        return gpt2_tokenizer()
    return load_tokenizer(folder)


@lru_cache(maxsize=4)  # files are read and checked each time, but the encoding is built once
def _tokenizer(name: str, pattern: str, ranks: bytes) -> Tokenizer:
    return Tokenizer(name, pattern, ranks)
