"""A byte-pair tokenizer as a table of ranks, read from and written to a `tokenizer/` folder.

The folder holds `ranks.tiktoken` and `meta.json`, as in every checkpoint and data set. Only what
other spellings of a tokenizer need is here: nothing is tokenized.
"""

import base64
import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from storage.atomic import read_json, write_json

LARGEST_VOCABULARY = 65_536  # our shards store a token in two bytes


@dataclass(frozen=True)
class BytePairs:
    """A tokenizer: how text is cut into words, and the tokens by rank (`ranks`: tiktoken's file).

    End-of-text has the id after the last rank.
    """

    name: str
    pattern: str
    ranks: bytes

    def __post_init__(self) -> None:
        missing = {bytes([byte]) for byte in range(256)} - set(self.tokens)
        if missing:
            raise ValueError(
                f"tokenizer {self.name} has no token for {len(missing)} of the 256 bytes, such as "
                f"{min(missing)!r}; use a byte-level one"
            )
        if self.n_vocab > LARGEST_VOCABULARY:
            raise ValueError(
                f"tokenizer {self.name} has {self.n_vocab} ids, but shards store a token in 16 "
                f"bits (at most {LARGEST_VOCABULARY}); use a model with a smaller vocabulary"
            )

    @cached_property
    def tokens(self) -> tuple[bytes, ...]:
        """The bytes of each rank."""
        try:
            pairs = [line.split() for line in self.ranks.splitlines()]
            table = {int(rank): base64.b64decode(token) for token, rank in pairs}
        except ValueError as error:
            raise ValueError(
                f"the ranks of tokenizer {self.name} are damaged ({error}); copy them again"
            ) from error
        if sorted(table) != list(range(len(pairs))) or len(set(table.values())) != len(table):
            raise ValueError(
                f"the {len(pairs)} ranks of tokenizer {self.name} have gaps or repeats; copy them "
                "again"
            )
        return tuple(table[rank] for rank in range(len(table)))

    @property
    def end_of_text(self) -> int:
        """The id of end-of-text."""
        return len(self.tokens)

    @property
    def n_vocab(self) -> int:
        """How many ids there are."""
        return len(self.tokens) + 1

    @cached_property
    def merges(self) -> tuple[tuple[bytes, bytes], ...]:
        """The pair that each token of several bytes is merged from, by rank.

        It is what is left of the token when only lower ranks are merged.
        Raises: ValueError for a token that no pair of others makes.
        """
        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        found = []
        for rank, token in enumerate(self.tokens):
            if len(token) > 1:
                parts = _merged(token, ranks, below=rank)
                if len(parts) != 2:
                    raise ValueError(
                        f"token {token!r} of tokenizer {self.name} is made of {len(parts)} earlier "
                        "ones and Hugging Face merges two at a time; it cannot be written there"
                    )
                found.append((parts[0], parts[1]))
        return tuple(found)


def _merged(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    parts = [bytes([byte]) for byte in token]
    while True:
        best, at = min(
            (ranks.get(left + right, below), i) for i, (left, right) in enumerate(pairwise(parts))
        )
        if best >= below:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def read_ours(folder: Path) -> BytePairs:
    """The tokenizer of a checkpoint or data set, from its `tokenizer/` folder.

    Raises: ValueError if it is missing or damaged.
    """
    if not (folder / "meta.json").is_file() or not (folder / "ranks.tiktoken").is_file():
        raise ValueError(
            f"{folder} holds no tokenizer (meta.json and ranks.tiktoken); copy the folder again"
        )
    meta, ranks = read_json(folder / "meta.json"), (folder / "ranks.tiktoken").read_bytes()
    missing = {"name", "pattern", "ranks_sha256"} - set(meta)
    if missing:
        raise ValueError(f"{folder / 'meta.json'} has no {sorted(missing)}; copy the folder again")
    found = hashlib.sha256(ranks).hexdigest()
    if found != meta["ranks_sha256"]:
        raise ValueError(
            f"{folder / 'ranks.tiktoken'} has sha256 {found}, but meta.json says "
            f"{meta['ranks_sha256']}; it is damaged, copy it again"
        )
    return BytePairs(meta["name"], meta["pattern"], ranks)


def write_ours(folder: Path, pairs: BytePairs) -> None:
    """Write `ranks.tiktoken` and `meta.json` into a new folder."""
    folder.mkdir()
    (folder / "ranks.tiktoken").write_bytes(pairs.ranks)
    meta = {
        "name": pairs.name,
        "pattern": pairs.pattern,
        "ranks_sha256": hashlib.sha256(pairs.ranks).hexdigest(),
        "n_vocab": pairs.n_vocab,
        "end_of_text": pairs.end_of_text,
    }
    write_json(folder / "meta.json", meta)
