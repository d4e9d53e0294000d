"""A byte-pair tokenizer: ranks, and what tokenizers of other programs have beside them.

Its folder is read and written by storage/vocabularies/folder.py. Encoding text is in
data_prep/tokenizer.py.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from storage.digest import fingerprint

END_OF_TEXT = "<|endoftext|>"
_NARROW_VOCABULARY = 65_536  # ids that two bytes hold
_MAX_VOCABULARY = 2**31 - 1  # so that ids fit int32, which other programs have
_MOST_GAPS = 10_000  # ids that no token has
GPT2_RANKS = Path(__file__).with_name("gpt2.tiktoken")
_GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
# How GPT-2 splits text before it merges bytes; tiktoken's spelling, faster than OpenAI's original:
# https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py
GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
# The others are in spellings that Hugging Face's `tokenizers` reads as tiktoken does: to it, a `+`
# after `{1,3}` is another repetition.
_LETTERS = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAPITALS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PATTERNS = {
    "gpt2": GPT2_PATTERN,
    # cl100k_base of tiktoken, as in Llama 3's tokenizer.json.
    "gpt4": _ENDINGS
    + r"""|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"""
    + r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    # The same with single digits: https://huggingface.co/Qwen/Qwen2.5-0.5B/blob/main/tokenizer.json
    "qwen2": _ENDINGS
    + r"""|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"""
    + r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    # https://github.com/karpathy/nanochat/blob/master/nanochat/tokenizer.py
    "nanochat": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"""
    + r"""| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+""",
    # o200k_base of tiktoken.
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_LETTERS}+{_ENDINGS}?"
    + rf"|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_LETTERS}*{_ENDINGS}?|\p{{N}}{{1,3}}"
    + r"""| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
}


@dataclass(frozen=True)
class Additions:
    """What a tokenizer of another program has beside its ranks."""

    end_of_text: int
    """The id that opens each document; one of `special`."""
    special: tuple[tuple[str, int], ...]
    """Tokens that no text gives, and their ids."""
    words: tuple[tuple[str, int], ...] = ()
    """Texts that are one token wherever they occur, found before a text is split."""
    tokenizer_json: bytes = b""
    """The file of Hugging Face's `tokenizers` that defines the ids; empty for tiktoken."""


@dataclass(frozen=True)
class BytePairs:
    """A tokenizer: the pattern that splits text, and the content of a tiktoken file of ranks.

    Without additions, the ranks have no gaps and end-of-text has the id after the last. The pattern
    is empty if tiktoken cannot give the ids of its tokenizer.json.
    """

    name: str
    pattern: str
    ranks: bytes
    additions: Additions | None = None

    def __post_init__(self) -> None:
        check_vocabulary(f"tokenizer {self.name}", self.n_vocab)
        missing = {bytes([byte]) for byte in range(256)} - self.rank_of.keys()
        if missing:
            raise ValueError(
                f"tokenizer {self.name} has no token for {len(missing)} of the 256 bytes, such as "
                f"{min(missing)!r}; use a byte-level one"
            )
        if self.additions is not None:
            _check_additions(self.name, self.rank_of, self.additions)

    @property
    def rank_of(self) -> Mapping[bytes, int]:
        """The id of each token that pieces of text give, in the order of the ids."""
        return _ranks(self.name, self.ranks, self.additions is not None)

    @cached_property
    def tokens(self) -> tuple[bytes, ...]:
        """The bytes of each id; none for special tokens and for ids that do not exist."""
        found = [b""] * self.n_vocab
        for token, rank in self.rank_of.items():
            found[rank] = token
        for text, rank in self.additions.words if self.additions else ():
            found[rank] = text.encode()
        return tuple(found)

    @property
    def special(self) -> dict[str, int]:
        """The tokens that no text gives, by id."""
        return dict(self.additions.special) if self.additions else {END_OF_TEXT: self.end_of_text}

    @property
    def end_of_text(self) -> int:
        """The id of end-of-text."""
        return self.additions.end_of_text if self.additions else len(self.rank_of)

    @property
    def end_token(self) -> str:
        """The name of end-of-text."""
        return next(name for name, rank in self.special.items() if rank == self.end_of_text)

    @cached_property
    def n_vocab(self) -> int:
        """One more than the largest id."""
        if self.additions is None:
            return len(self.rank_of) + 1
        more = [rank for _, rank in (*self.additions.special, *self.additions.words)]
        return max(*self.rank_of.values(), *more) + 1

    @cached_property
    def ranks_sha256(self) -> str:
        """sha256 of all that decides the ids; a manifest knows the tokenizer by it.

        With GPT-2's pattern and without additions it is that of the ranks.
        """
        ranks, more = hashlib.sha256(self.ranks).hexdigest(), self.additions
        if more is None:
            return ranks if self.pattern == GPT2_PATTERN else fingerprint([ranks, self.pattern])
        source = hashlib.sha256(more.tokenizer_json).hexdigest()
        return fingerprint(
            [ranks, self.pattern, more.end_of_text, more.special, more.words, source]
        )


def _check_additions(name: str, rank_of: Mapping[bytes, int], additions: Additions) -> None:
    ids = [rank for _, rank in (*additions.special, *additions.words)]
    names = [text for text, _ in (*additions.special, *additions.words)]
    taken = set(rank_of.values())
    twice = sorted({rank for rank in ids if rank in taken or ids.count(rank) > 1})
    if twice or len(set(names)) < len(names):
        raise ValueError(
            f"tokenizer {name} has the ids {twice[:8]} more than once, or a token twice; the file "
            "is damaged, copy it again"
        )
    tokens = len(taken) + len(ids)
    if max(taken | set(ids)) > tokens + _MOST_GAPS or min(ids) < 0:
        raise ValueError(
            f"tokenizer {name} has {tokens} tokens and the ids {min(ids)} to "
            f"{max(taken | set(ids))}; the file is damaged, copy it again"
        )
    if additions.end_of_text not in dict(additions.special).values():
        raise ValueError(
            f"tokenizer {name} has no special token {additions.end_of_text}, which is to be "
            "end-of-text; name one of its special tokens with --end-of-text"
        )


@lru_cache(maxsize=4)  # the same tokenizer is read from many folders
def _ranks(name: str, ranks: bytes, with_gaps: bool) -> Mapping[bytes, int]:
    try:
        pairs = [line.split() for line in ranks.splitlines()]
        table = {int(rank): base64.b64decode(token) for token, rank in pairs}
    except ValueError as error:
        raise ValueError(
            f"the ranks of tokenizer {name} are damaged ({error}); each line must be the base64 "
            "of a token, a space and its rank"
        ) from error
    in_order = sorted(table) == list(range(len(pairs)))
    sound = in_order or (with_gaps and len(table) == len(pairs) and min(table, default=-1) >= 0)
    if not table or not sound or len(set(table.values())) != len(table) or b"" in table.values():
        raise ValueError(
            f"the {len(pairs)} ranks of tokenizer {name} must be 0, 1, 2, … without gaps or "
            "repeats; the file is damaged, copy it again"
        )
    return {table[rank]: rank for rank in sorted(table)}


def check_vocabulary(what: str, n_vocab: int) -> None:
    """Raises: ValueError if `n_vocab` ids are more than a shard and a step can have."""
    if n_vocab > _MAX_VOCABULARY:
        raise ValueError(
            f"{what} has {n_vocab} ids, but a token is stored in at most 31 bits "
            f"({_MAX_VOCABULARY} ids); use a smaller vocabulary"
        )


def token_dtype(n_vocab: int) -> np.dtype:
    """How shards store a token of a vocabulary: two bytes where they hold every id, else four."""
    return np.dtype("<u2" if n_vocab <= _NARROW_VOCABULARY else "<u4")


def ranks_file(tokens: Iterable[bytes]) -> bytes:
    """The content of a tiktoken file with these tokens, in the order of their ids."""
    return ranks_file_of({token: rank for rank, token in enumerate(tokens)})


def ranks_file_of(rank_of: Mapping[bytes, int]) -> bytes:
    """The content of a tiktoken file with these tokens and ids."""
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in rank_of.items())
    return b"".join(lines)


def read_with_digest(path: Path, sha256: str) -> bytes:
    """The content of a tokenizer's file. Raises: ValueError if it is missing, or another one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"the tokenizer's file {path} is missing; copy it again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} has sha256 {found}, but the tokenizer's file must have {sha256}; "
            "it is damaged, copy it again"
        )
    return content


def gpt2_byte_pairs() -> BytePairs:
    """GPT-2's tokenizer. Raises: ValueError if its file of ranks is missing or damaged."""
    return BytePairs("gpt2", GPT2_PATTERN, read_with_digest(GPT2_RANKS, _GPT2_RANKS_SHA256))
