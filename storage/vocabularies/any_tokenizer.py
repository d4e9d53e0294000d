"""The tokenizer of a path: a folder of ours, Hugging Face's files, or one of tiktoken's."""

import json
from pathlib import Path
from typing import Any

from storage.atomic import read_json
from storage.byte_pairs import END_OF_TEXT, BytePairs, gpt2_byte_pairs
from storage.vocabularies.folder import about_missing, read_byte_pairs, tokenizer_folder_in
from storage.vocabularies.tiktoken_files import is_rank_file, pairs_of_rank_file
from storage.vocabularies.tokenizer_json import pairs_of_json, special_entry

_LIBRARY_FILE = "tokenizer.json"
_TWO_FILES = ("vocab.json", "merges.txt")
_SETTINGS = "tokenizer_config.json"
_BEGINNING = 4096  # bytes of a file that show whether it holds ranks; a model has gigabytes
LIBRARY_FILES = (_LIBRARY_FILE, *_TWO_FILES, _SETTINGS)


def read_any_tokenizer(place: Path, end_of_text: str | None = None) -> BytePairs:
    """The tokenizer of a folder or file in any format that is known.

    `end_of_text`: the name of the special token that opens each document, if it is not plain.
    Raises: ValueError if there is none, or it cannot be used.
    """
    if (own := tokenizer_folder_in(place)) is not None:
        pairs = read_byte_pairs(own)
        if end_of_text not in (None, pairs.end_token):
            raise ValueError(
                f"the tokenizer in {place} has {pairs.end_token} as end-of-text, not "
                f"{end_of_text}; omit --end-of-text"
            )
        return pairs
    name = (place.parent if place.is_file() else place).resolve().name
    pairs = read_library_files(place, name, end_of_text)
    if pairs is None:
        pairs = _ranks(place, end_of_text)
    if pairs is None:
        raise ValueError(about_missing(place))
    return pairs


def read_library_files(place: Path, name: str, end_of_text: str | None = None) -> BytePairs | None:
    """The tokenizer in Hugging Face's files (`place` is their folder, or the tokenizer.json).

    None if there are no such files. Raises: ValueError if it is no byte-level one, or damaged.
    """
    path = place if place.is_file() else place / _LIBRARY_FILE
    two = [place / file for file in _TWO_FILES]
    if path.is_file() and path.suffix == ".json":
        content = path.read_bytes()
    elif all(file.is_file() for file in two):
        path, content = two[0], _joined(*two)
    else:
        return None
    bos, eos = (_named_token(path.with_name(_SETTINGS), key) for key in ("bos_token", "eos_token"))
    # The same token for both, as in GPT-2 and in what we export, is between documents.
    end_of_text = end_of_text or (bos if bos == eos else None)
    pairs = pairs_of_json(path, content, name, end_of_text, eos)
    gpt2 = gpt2_byte_pairs()
    return (
        gpt2 if pairs.ranks_sha256 == gpt2.ranks_sha256 and pairs.pattern == gpt2.pattern else pairs
    )


def _named_token(path: Path, key: str) -> str | None:
    """A special token that a model's tokenizer_config.json names."""
    if not path.is_file():
        return None
    found: Any = read_json(path)
    token = found.get(key) if isinstance(found, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _joined(vocabulary: Path, merges: Path) -> bytes:
    """GPT-2's two files as a tokenizer.json."""
    ids = read_json(vocabulary)
    try:
        lines = merges.read_text(encoding="utf-8").split("\n")
    except UnicodeError as error:
        raise ValueError(f"{merges} is not UTF-8 ({error}); copy it again") from error
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not isinstance(ids, dict) or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"{vocabulary} and {merges.name} do not have the structure of a tokenizer; copy them "
            "again"
        )
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [special_entry(END_OF_TEXT, ids[END_OF_TEXT])] if END_OF_TEXT in ids else []
    content = {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": added},
        **{"normalizer": None, "pre_tokenizer": step, "post_processor": step, "decoder": step},
        "model": {"type": "BPE", "vocab": ids, "merges": pairs},
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _ranks(place: Path, end_of_text: str | None) -> BytePairs | None:
    """The tokenizer of a file of ranks, or of the only one in a folder."""
    found = [place] if place.is_file() else sorted(place.glob("*.tiktoken"))
    if not found and (place / "tokenizer.model").is_file():
        found = [place / "tokenizer.model"]
    if len(found) != 1:
        return None
    with found[0].open("rb") as file:
        begins = file.read(_BEGINNING)
    if not is_rank_file(begins):
        if found[0].name == "tokenizer.model":
            raise ValueError(
                f"{found[0]} is a tokenizer of SentencePiece; only byte-level BPE can be used (a "
                "tokenizer.json, or tiktoken's files)"
            )
        return None
    return pairs_of_rank_file(found[0], found[0].read_bytes(), found[0].stem, end_of_text)
