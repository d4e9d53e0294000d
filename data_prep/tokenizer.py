"""GPT-2's byte-pair tokenizer from the ranks in this folder, or any other from its own folder.

Text in, token ids out and back. Nothing is ever fetched: the ranks are a file with a known sha256.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import tiktoken

from storage.atomic import new_file, read_json, write_json

END_OF_TEXT = "<|endoftext|>"
LARGEST_VOCABULARY = 65_536  # a token is stored in two bytes

GPT2_RANKS = Path(__file__).parent / "gpt2.tiktoken"
GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
# How GPT-2 cuts text into words before merging bytes. Source: tiktoken_ext/openai_public.py
GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)


class Tokenizer:
    """Byte-pair encoding with one special token, end-of-text, which has the last id."""

    def __init__(self, name: str, pattern: str, ranks: bytes) -> None:
        """`ranks` is the content of a tiktoken file: lines of base64 of the bytes, space, rank."""
        table = _parse_ranks(name, ranks)
        self.name = name
        self.pattern = pattern
        self.ranks_sha256 = hashlib.sha256(ranks).hexdigest()
        self.end_of_text = len(table)
        self.n_vocab = len(table) + 1
        check_vocabulary(f"tokenizer {name}", self.n_vocab)
        self.ranks = ranks
        self._encoding = tiktoken.Encoding(
            name,
            pat_str=pattern,
            mergeable_ranks=table,
            special_tokens={END_OF_TEXT: self.end_of_text},
        )

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[str, str, bytes]]:
        return Tokenizer, (self.name, self.pattern, self.ranks)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; a literal `<|endoftext|>` in it is ordinary text."""
        return self._encoding.encode_ordinary(text)

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """The same ids as `encode`, as uint16."""
        try:
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            text = without_surrogates(text)
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        return ids.astype(np.uint16)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self._encoding.decode(list(ids), errors="replace")

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes of `ids`, which may end inside a character."""
        return self._encoding.decode_bytes(list(ids))

    def token_bytes(self) -> np.ndarray:
        """Raw bytes that each id stands for, int32 of shape (n_vocab,); 0 for end-of-text."""
        return self._token_bytes.copy()

    @cached_property
    def _token_bytes(self) -> np.ndarray:
        lengths = np.zeros(self.n_vocab, np.int32)
        for token in range(self.end_of_text):
            lengths[token] = len(self._encoding.decode_single_token_bytes(token))
        return lengths

    def save(self, folder: Path) -> None:
        """Write `ranks.tiktoken` and `meta.json`, which `load_tokenizer` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(folder / "ranks.tiktoken") as aside:
            aside.write_bytes(self.ranks)
        meta = {
            "name": self.name,
            "pattern": self.pattern,
            "ranks_sha256": self.ranks_sha256,
            "n_vocab": self.n_vocab,
            "end_of_text": self.end_of_text,
        }
        write_json(folder / "meta.json", meta)


def check_vocabulary(what: str, n_vocab: int) -> None:
    """Raises: ValueError if a token of so many ids does not fit a shard."""
    if n_vocab > LARGEST_VOCABULARY:
        raise ValueError(
            f"{what} has {n_vocab} ids, but shards store a token in 16 bits "
            f"(at most {LARGEST_VOCABULARY}); use a smaller vocabulary"
        )


def ranks_file(tokens: Iterable[bytes]) -> bytes:
    """The content of a tiktoken file with these tokens, in the order of their ids."""
    lines = (b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens))
    return b"".join(lines)


def without_surrogates(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    return utf8(text).decode()


def utf8(text: str) -> bytes:
    """`text` in UTF-8, with lone surrogates, which it cannot hold, replaced by U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _parse_ranks(name: str, ranks: bytes) -> dict[bytes, int]:
    try:
        pairs = (line.split() for line in ranks.splitlines())
        table = {base64.b64decode(token): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise ValueError(
            f"the ranks of tokenizer {name} are damaged ({error}); each line must be the base64 "
            "of a token, a space and its rank"
        ) from error
    if not table or sorted(table.values()) != list(range(len(table))):
        raise ValueError(
            f"the {len(table)} ranks of tokenizer {name} must be 0, 1, 2, … without gaps or "
            "repeats; the file is damaged, copy it again"
        )
    return table


@cache
def gpt2_tokenizer() -> Tokenizer:
    """OpenAI's GPT-2 tokenizer: 50,257 ids, end-of-text 50256."""
    return Tokenizer("gpt2", GPT2_PATTERN, _read_ranks(GPT2_RANKS, GPT2_RANKS_SHA256))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote to `folder`.

    Raises: ValueError if it is missing, damaged or too large for 16-bit tokens.
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no tokenizer (no meta.json); copy the whole folder again")
    meta = read_json(path)
    missing = {"name", "pattern", "ranks_sha256"} - set(meta)
    if missing:
        raise ValueError(f"{path} has no {sorted(missing)}; copy the whole folder again")
    ranks = _read_ranks(folder / "ranks.tiktoken", meta["ranks_sha256"])
    return Tokenizer(meta["name"], meta["pattern"], ranks)


def _read_ranks(path: Path, sha256: str) -> bytes:
    try:
        ranks = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"the tokenizer's ranks {path} are missing; copy them again") from error
    found = hashlib.sha256(ranks).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} has sha256 {found}, but the tokenizer's ranks must have {sha256}; "
            "the file is damaged, copy it again"
        )
    return ranks
