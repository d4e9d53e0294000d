"""A byte-pair tokenizer as a table of ranks, and its folder in checkpoints and data sets.

The folder `tokenizer/` holds `ranks.tiktoken` and `meta.json`. Encoding text is in
data_prep/tokenizer.py.
"""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from storage.atomic import new_file, read_json, write_json
from storage.digest import fingerprint
from storage.ownership.latest import follow_latest

END_OF_TEXT = "<|endoftext|>"
_META = "meta.json"
_INSIDE = "tokenizer"  # the folder, in that of a checkpoint or of a data set
_META_KEYS = {"name", "pattern", "ranks_sha256", "n_vocab", "end_of_text"}
# The key of meta.json that holds the fingerprint of all other keys: ranks_sha256 does not cover the
# pattern, and a damaged pattern would split text in other places without an error.
_FINGERPRINT = "fingerprint"
_NARROW_VOCABULARY = 65_536  # ids that two bytes hold
_MAX_VOCABULARY = 2**31 - 1  # so that ids fit int32, which other programs have
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
class BytePairs:
    """A tokenizer: the pattern that splits text, and the content of a tiktoken file of ranks.

    End-of-text has the id after the last rank.
    """

    name: str
    pattern: str
    ranks: bytes

    def __post_init__(self) -> None:
        check_vocabulary(f"tokenizer {self.name}", self.n_vocab)
        missing = {bytes([byte]) for byte in range(256)} - set(self.tokens)
        if missing:
            raise ValueError(
                f"tokenizer {self.name} has no token for {len(missing)} of the 256 bytes, such as "
                f"{min(missing)!r}; use a byte-level one"
            )

    @cached_property
    def tokens(self) -> tuple[bytes, ...]:
        """The bytes of each token, by rank."""
        return _tokens(self.name, self.ranks)

    @property
    def end_of_text(self) -> int:
        """The id of end-of-text."""
        return len(self.tokens)

    @property
    def n_vocab(self) -> int:
        """Number of ids, end-of-text included."""
        return len(self.tokens) + 1

    @cached_property
    def ranks_sha256(self) -> str:
        """sha256 of the ranks, as recorded in `meta.json` and in a data set's manifest."""
        return hashlib.sha256(self.ranks).hexdigest()


@lru_cache(maxsize=4)  # the same tokenizer is read from many folders
def _tokens(name: str, ranks: bytes) -> tuple[bytes, ...]:
    try:
        pairs = [line.split() for line in ranks.splitlines()]
        table = {int(rank): base64.b64decode(token) for token, rank in pairs}
    except ValueError as error:
        raise ValueError(
            f"the ranks of tokenizer {name} are damaged ({error}); each line must be the base64 "
            "of a token, a space and its rank"
        ) from error
    in_order = sorted(table) == list(range(len(pairs)))
    if not table or not in_order or len(set(table.values())) != len(table):
        raise ValueError(
            f"the {len(pairs)} ranks of tokenizer {name} must be 0, 1, 2, … without gaps or "
            "repeats; the file is damaged, copy it again"
        )
    return tuple(table[rank] for rank in range(len(table)))


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
    lines = (b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens))
    return b"".join(lines)


def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in Hugging Face's files.

    Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py bytes_to_unicode
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


def _read_ranks(path: Path, sha256: str) -> bytes:
    """The content of a tiktoken file. Raises: ValueError if it is missing or has another sha256."""
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


def read_byte_pairs(folder: Path) -> BytePairs:
    """The tokenizer in `folder`, or of the checkpoint, run or data set in `folder`.

    Raises: ValueError if it is missing, damaged or too large.
    """
    folder = follow_latest(folder)
    inside = folder / _INSIDE
    folder = inside if not (folder / _META).is_file() and (inside / _META).is_file() else folder
    path = folder / _META
    if not path.is_file():
        raise ValueError(_about_other(folder))
    meta = read_json(path)
    found = meta if isinstance(meta, dict) else {}
    words = ("name", "pattern", "ranks_sha256")
    if missing := [key for key in words if not isinstance(found.get(key), str)]:
        raise ValueError(f"{path} has no text as {missing}; copy the whole folder again")
    recorded = meta.pop(_FINGERPRINT, None)  # older folders have none
    if (recorded is not None and recorded != fingerprint(meta)) or not meta.keys() <= _META_KEYS:
        raise ValueError(f"{path} does not fit its own fingerprint; copy the whole folder again")
    ranks = _read_ranks(folder / "ranks.tiktoken", meta["ranks_sha256"])
    return BytePairs(meta["name"], meta["pattern"], ranks)


def _about_other(folder: Path) -> str:
    """What to give instead of a folder that holds no tokenizer of ours."""
    give = (
        "give a folder made by data_prep/train_tokenizer.py, or that of a checkpoint, a run or a "
        "data set that has it; without --tokenizer it is GPT-2's"
    )
    if not folder.exists():
        return f"there is no tokenizer at {folder}; {give}"
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return (
            f"{folder} holds a tokenizer of Hugging Face; import its model first with `python "
            f"model/huggingface.py import {folder} --out FOLDER`, and give FOLDER"
        )
    return f"{folder} holds no tokenizer (no {_META}); {give}, or copy the whole folder again"


def gpt2_byte_pairs() -> BytePairs:
    """GPT-2's tokenizer. Raises: ValueError if its file of ranks is missing or damaged."""
    return BytePairs("gpt2", GPT2_PATTERN, _read_ranks(GPT2_RANKS, _GPT2_RANKS_SHA256))


def write_byte_pairs(folder: Path, pairs: BytePairs) -> None:
    """Write the tokenizer as the folder that `read_byte_pairs` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / "ranks.tiktoken") as temporary:
        temporary.write_bytes(pairs.ranks)
    meta = {
        "name": pairs.name,
        "pattern": pairs.pattern,
        "ranks_sha256": pairs.ranks_sha256,
        "n_vocab": pairs.n_vocab,
        "end_of_text": pairs.end_of_text,
    }
    write_json(folder / _META, {**meta, _FINGERPRINT: fingerprint(meta)})
