"""The manifest of a data set: its content and origin, with one fingerprint.

manifest.json is written last: a folder without it is no data set. The dataclasses here are the
exact content of the file, in its order. Only this module writes and reads it.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from storage.atomic import read_json, write_json
from storage.byte_pairs import token_dtype
from storage.digest import fingerprint
from storage.records.json_fields import check_field_types

# Format 1: whole documents, each opened by end-of-text; uint16 tokens, uint32 lengths, uint32 pairs
# (file, row); validation documents chosen by the hash in preparation/split.py.
# Format 2: duplicates are counted.
# Format 3: as 2, with uint32 tokens and `token_bytes`, for vocabularies beyond 65,536 ids. The
# number makes a program that knows only format 2 say that it cannot read it.
FORMAT_VERSION = 2
_WIDE_FORMAT_VERSION = 3
_NARROW_BYTES = 2
MANIFEST_NAME = "manifest.json"

SplitName = Literal["train", "val"]


@dataclass(frozen=True)
class TokenizerEntry:
    """Which tokenizer made the tokens; its files are in the data set's `tokenizer/`."""

    name: str
    ranks_sha256: str
    n_vocab: int
    end_of_text: int


@dataclass(frozen=True)
class SourceFile:
    """One file of the source, by its name inside the source."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceEntry:
    """Where the documents came from; `name`.source.npy of a shard counts in `files`."""

    id: str
    revision: str
    files: tuple[SourceFile, ...]


@dataclass(frozen=True)
class ShardEntry:
    """One shard: `name`.npy, `name`.lengths.npy and `name`.source.npy."""

    name: str
    tokens: int
    documents: int
    text_bytes: int
    max_id: int
    tokens_sha256: str
    lengths_sha256: str
    source_sha256: str

    def files(self) -> dict[str, str]:
        """The names of the three files, each with its sha256."""
        return {
            f"{self.name}.npy": self.tokens_sha256,
            f"{self.name}.lengths.npy": self.lengths_sha256,
            f"{self.name}.source.npy": self.source_sha256,
        }


@dataclass(frozen=True)
class SplitEntry:
    """All shards of training or of validation, and their totals."""

    tokens: int
    documents: int
    text_bytes: int
    unigram_entropy_nats: float
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class Duplicates:
    """How many documents are copies of an earlier one in the source; empty documents do not count.

    `normalised` counts copies that differ at most in case, whitespace and punctuation.
    """

    exact: int
    normalised: int


@dataclass(frozen=True)
class BadEntry:
    """One record that was left out: its file, its row there (from 0), and what is wrong with it."""

    file: str
    row: int
    place: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    `settings` are the options of the preparation that affect the bytes of the data set, and
    `split_rule` is the rule for validation documents that follows from them for this source.
    """

    format_version: int
    tokenizer: TokenizerEntry
    source: SourceEntry
    settings: dict[str, Any]
    split_rule: dict[str, Any]
    skipped_empty: int
    train: SplitEntry
    val: SplitEntry
    duplicates: Duplicates = Duplicates(0, 0)
    bad_records: int = 0
    """How many records were left out, as `--skip-bad` allows. Not in the file if there are none."""
    first_bad_records: tuple[BadEntry, ...] = ()
    """The first of them, in the order of the source."""
    token_bytes: int = 2
    """Bytes of a token in the shards, 2 or 4, as the vocabulary needs. In the file if it is 4."""
    fingerprint: str = ""

    @property
    def token_dtype(self) -> np.dtype:
        """The type of the tokens in all shards."""
        return np.dtype(f"<u{self.token_bytes}")

    def split(self, name: SplitName) -> SplitEntry:
        """The entry of one split."""
        return self.train if name == "train" else self.val

    def sealed(self) -> "Manifest":
        """A copy of this manifest with its fingerprint filled in."""
        return replace(self, fingerprint=self._computed_fingerprint())

    def _computed_fingerprint(self) -> str:
        content = self._as_json()
        del content["fingerprint"]
        return fingerprint(content)

    def write(self, folder: Path) -> None:
        """Write manifest.json, which makes the folder a data set."""
        write_json(folder / MANIFEST_NAME, self._as_json())

    def _as_json(self) -> dict[str, Any]:
        content = asdict(self)
        if not self.bad_records:
            del content["bad_records"], content["first_bad_records"]
        if self.token_bytes == _NARROW_BYTES:
            del content["token_bytes"]
        return content


def token_format(n_vocab: int) -> dict[str, Any]:
    """`format_version` and `token_bytes` of the manifest of a data set with this vocabulary."""
    size = token_dtype(n_vocab).itemsize
    version = FORMAT_VERSION if size == _NARROW_BYTES else _WIDE_FORMAT_VERSION
    return {"format_version": version, "token_bytes": size}


def split_entry(shards: tuple[ShardEntry, ...], counts: np.ndarray) -> SplitEntry:
    """The entry of a split from its shards; `counts` is how often each id occurs in them."""
    return SplitEntry(
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        text_bytes=sum(shard.text_bytes for shard in shards),
        unigram_entropy_nats=unigram_entropy_nats(counts),
        shards=shards,
    )


def unigram_entropy_nats(counts: np.ndarray) -> float:
    """Loss in nats per token of the best model that knows only how often each id occurs."""
    seen = counts[counts > 0].tolist()
    total = sum(seen)
    if total == 0:
        return 0.0
    mean_log = math.fsum(count * math.log(count) for count in seen) / total
    # Rounded, because the last bit of a logarithm differs between machines and the bytes of the
    # manifest must not.
    return round(math.log(total) - mean_log, 9)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the data set in `folder`.

    Raises: ValueError if there is no manifest, or it is damaged, edited or of another format.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ValueError(
            f"there is no data set at {folder}; make one with `python data_prep/fineweb.py`, "
            "`tinystories.py`, or `text.py FILES --out FOLDER` (`make data/demo/manifest.json` "
            "for the demo's)"
        )
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {MANIFEST_NAME}, so its preparation did not finish; run it again"
        )
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in (FORMAT_VERSION, _WIDE_FORMAT_VERSION):
        raise ValueError(
            f"{path} has format_version={version}, but this program reads {FORMAT_VERSION} and "
            f"{_WIDE_FORMAT_VERSION}; prepare the data set again or use the program that made it"
        )
    try:
        manifest = _from_json(path, content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the data set again") from error
    for entry in _entries(manifest):
        check_field_types(path, entry, "prepare the data set again")
    if manifest.sealed().fingerprint != manifest.fingerprint:
        raise ValueError(
            f"{path} does not fit its own fingerprint, so it was edited or damaged; "
            "prepare the data set again"
        )
    _check_token_format(path, manifest)
    if not all(map(_adds_up, (manifest.train, manifest.val))):
        raise ValueError(f"{path}: shards and totals do not fit; prepare the data set again")
    return manifest


def _check_token_format(path: Path, manifest: Manifest) -> None:
    n_vocab = manifest.tokenizer.n_vocab
    expected = token_format(n_vocab)
    found = {name: getattr(manifest, name) for name in expected}
    if found != expected:
        shown = " and ".join(f"{name}={value}" for name, value in found.items())
        needed = " and ".join(f"{name}={value}" for name, value in expected.items())
        raise ValueError(
            f"{path} says {shown}, but a vocabulary of {n_vocab} ids has {needed}; prepare the "
            "data set again"
        )


def _adds_up(split: SplitEntry) -> bool:
    """Whether the totals of a split are those of its shards."""
    totals = (split.tokens, split.documents, split.text_bytes)
    sizes = [(shard.tokens, shard.documents, shard.text_bytes) for shard in split.shards]
    return totals == tuple(map(sum, zip((0, 0, 0), *sizes, strict=True)))


def _entries(manifest: Manifest) -> Iterator[Any]:
    """All parts of a manifest."""
    yield from (manifest, manifest.tokenizer, manifest.source, *manifest.source.files)
    yield from (manifest.duplicates, *manifest.first_bad_records)
    for split in (manifest.train, manifest.val):
        yield from (split, *split.shards)


def _from_json(path: Path, content: dict[str, Any]) -> Manifest:
    source = content["source"]
    files = tuple(SourceFile(**file) for file in source["files"])
    return Manifest(
        **{
            **content,
            "tokenizer": TokenizerEntry(**content["tokenizer"]),
            "source": SourceEntry(**{**source, "files": files}),
            "train": _split_from_json(path, content["train"]),
            "val": _split_from_json(path, content["val"]),
            "duplicates": Duplicates(**content["duplicates"]),
            "first_bad_records": tuple(
                BadEntry(**entry) for entry in content.get("first_bad_records", ())
            ),
        }
    )


def _split_from_json(path: Path, content: dict[str, Any]) -> SplitEntry:
    shards = tuple(ShardEntry(**shard) for shard in content["shards"])
    for shard in shards:
        if not re.fullmatch(r"\w[\w-]*", shard.name, re.ASCII):  # the name becomes part of a path
            raise ValueError(f"{path} says {shard.name!r}, which is no name of a shard")
    return SplitEntry(**{**content, "shards": shards})
