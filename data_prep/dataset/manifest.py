"""What a data set says about itself: manifest.json, written last, with one fingerprint over all.

The dataclasses here are the file's exact content, in its order.
"""

import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from storage.atomic import read_json, write_json
from storage.digest import fingerprint

# 1: whole documents, each opened by end-of-text; uint16 tokens, uint32 lengths, uint32 (file, row);
# validation documents chosen by the hash in split.py. 2: duplicates are counted.
FORMAT_VERSION = 2
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
    """Where the documents came from; `files` is what the source index counts in."""

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
        """File name to sha256."""
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
    """Documents, of those not empty, that are copies of an earlier one in the source.

    `normalised` counts copies that differ at most in case, whitespace and punctuation.
    """

    exact: int
    normalised: int


@dataclass(frozen=True)
class Manifest:
    """The whole manifest.

    `settings` are the options of the preparation that decide its bytes, and `split_rule` what
    they came to for this source.
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
    fingerprint: str = ""

    def split(self, name: SplitName) -> SplitEntry:
        """The entry of one split."""
        return self.train if name == "train" else self.val

    def sealed(self) -> "Manifest":
        """The same with its fingerprint."""
        return replace(self, fingerprint=self._computed_fingerprint())

    def _computed_fingerprint(self) -> str:
        content = asdict(self)
        del content["fingerprint"]
        return fingerprint(content)

    def write(self, folder: Path) -> None:
        """Write manifest.json: from here on the folder is a data set."""
        write_json(folder / MANIFEST_NAME, asdict(self))


def split_entry(shards: tuple[ShardEntry, ...], counts: np.ndarray) -> SplitEntry:
    """Totals of `shards`; `counts` is how often each id occurs in them."""
    return SplitEntry(
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        text_bytes=sum(shard.text_bytes for shard in shards),
        unigram_entropy_nats=unigram_entropy_nats(counts),
        shards=shards,
    )


def unigram_entropy_nats(counts: np.ndarray) -> float:
    """Loss in nats a token of the best model that knows only how often each id occurs."""
    seen = counts[counts > 0].tolist()
    total = sum(seen)
    if total == 0:
        return 0.0
    mean_log = math.fsum(count * math.log(count) for count in seen) / total
    # Rounded, so that the manifest's bytes do not hang on the last bit of a machine's logarithm.
    return round(math.log(total) - mean_log, 9)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the data set in `folder`.

    Raises: ValueError if the folder is none, half-written, of another format, or was edited.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ValueError(
            f"there is no data set at {folder}; make one with `python data_prep/fineweb.py`, "
            "`tinystories.py`, or `text.py FILES --out FOLDER` (--embedded for the demo's)"
        )
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {MANIFEST_NAME}, so its preparation did not finish; run it again"
        )
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version={version}, but this program reads {FORMAT_VERSION}; "
            "prepare the data set again or use the program that made it"
        )
    try:
        manifest = _from_json(path, content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the data set again") from error
    if manifest.sealed().fingerprint != manifest.fingerprint:
        raise ValueError(
            f"{path} does not fit its own fingerprint, so it was edited or damaged; "
            "prepare the data set again"
        )
    return manifest


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
        }
    )


def _split_from_json(path: Path, content: dict[str, Any]) -> SplitEntry:
    shards = tuple(ShardEntry(**shard) for shard in content["shards"])
    for shard in shards:
        if not re.fullmatch(r"\w[\w-]*", shard.name, re.ASCII):  # it becomes a path
            raise ValueError(f"{path} says {shard.name!r}, which is no name of a shard")
    return SplitEntry(**{**content, "shards": shards})
