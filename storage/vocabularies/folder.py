"""The folder `tokenizer/` of checkpoints and data sets.

It holds `ranks.tiktoken` and `meta.json`, and `tokenizer.json` where Hugging Face's `tokenizers`
defines the ids.
"""

import hashlib
from pathlib import Path
from typing import Any

from storage.atomic import new_file, read_json, write_json
from storage.byte_pairs import Additions, BytePairs, read_with_digest
from storage.digest import fingerprint
from storage.ownership.latest import follow_latest

_META = "meta.json"
_RANKS = "ranks.tiktoken"
_LIBRARY_FILE = "tokenizer.json"
_INSIDE = "tokenizer"  # the folder, in that of a checkpoint or of a data set
_META_KEYS = {"name", "pattern", "ranks_sha256", "n_vocab", "end_of_text"}
_ADDED_KEYS = {"special_tokens", "words"}  # both, or neither
_LIBRARY_KEY = "tokenizer_json_sha256"
# The key of meta.json that holds the fingerprint of all other keys: ranks_sha256 does not cover the
# pattern, and a damaged pattern would split text in other places without an error.
_FINGERPRINT = "fingerprint"


def tokenizer_folder_in(folder: Path) -> Path | None:
    """The folder of a tokenizer of ours that is, or is inside, `folder`; None if there is none."""
    folder = follow_latest(folder)
    places = (folder, folder / _INSIDE)
    return next((place for place in places if (place / _META).is_file()), None)


def read_byte_pairs(folder: Path) -> BytePairs:
    """The tokenizer in `folder`, or of the checkpoint, run or data set in `folder`.

    Raises: ValueError if it is missing, damaged or too large.
    """
    found = tokenizer_folder_in(folder)
    if found is None:
        raise ValueError(about_missing(folder))
    path = found / _META
    meta = read_json(path)
    entries = meta if isinstance(meta, dict) else {}
    words = ("name", "pattern", "ranks_sha256")
    if missing := [key for key in words if not isinstance(entries.get(key), str)]:
        raise ValueError(f"{path} has no text as {missing}; copy the whole folder again")
    recorded = meta.pop(_FINGERPRINT, None)  # older folders have none
    known = meta.keys() <= _META_KEYS | _ADDED_KEYS | {_LIBRARY_KEY}
    if (recorded is not None and recorded != fingerprint(meta)) or not known:
        raise ValueError(f"{path} does not fit its own fingerprint; copy the whole folder again")
    ranks = read_with_digest(found / _RANKS, meta["ranks_sha256"])
    return BytePairs(meta["name"], meta["pattern"], ranks, _additions(found, meta))


def _additions(folder: Path, meta: dict[str, Any]) -> Additions | None:
    if not meta.keys() >= _ADDED_KEYS:
        return None
    library = meta.get(_LIBRARY_KEY)
    content = read_with_digest(folder / _LIBRARY_FILE, library) if library else b""
    try:
        special, words = (tuple(meta[key].items()) for key in ("special_tokens", "words"))
        ids = [meta["end_of_text"], *(rank for _, rank in (*special, *words))]
        if not all(type(rank) is int for rank in ids):
            raise TypeError("an id is not a whole number")
        return Additions(meta["end_of_text"], special, words, content)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / _META} is damaged ({error}); copy the whole folder again"
        ) from error


def about_missing(folder: Path) -> str:
    """What to give instead of a path that holds no tokenizer."""
    give = (
        "give a folder made by data_prep/train_tokenizer.py, or that of a checkpoint, a run or a "
        "data set that has it, or a tokenizer.json, or a file of tiktoken; without --tokenizer it "
        "is GPT-2's"
    )
    if not folder.exists():
        return f"there is no tokenizer at {folder}; {give}"
    if folder.is_file():
        return f"{folder} is no tokenizer.json and no file of tiktoken; {give}"
    return f"{folder} holds no tokenizer (no {_META}); {give}, or copy the whole folder again"


def write_byte_pairs(folder: Path, pairs: BytePairs) -> None:
    """Write the tokenizer as the folder that `read_byte_pairs` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / _RANKS, pairs.ranks)
    meta: dict[str, Any] = {
        "name": pairs.name,
        "pattern": pairs.pattern,
        "ranks_sha256": hashlib.sha256(pairs.ranks).hexdigest(),
        "n_vocab": pairs.n_vocab,
        "end_of_text": pairs.end_of_text,
    }
    if pairs.additions is not None:
        meta["special_tokens"] = dict(pairs.additions.special)
        meta["words"] = dict(pairs.additions.words)
        if content := pairs.additions.tokenizer_json:
            _write(folder / _LIBRARY_FILE, content)
            meta[_LIBRARY_KEY] = hashlib.sha256(content).hexdigest()
    write_json(folder / _META, {**meta, _FINGERPRINT: fingerprint(meta)})


def _write(path: Path, content: bytes) -> None:
    with new_file(path) as temporary:
        temporary.write_bytes(content)
