"""Which tokenizer.json can be used: byte-level byte pairs whose ids give the text back."""

import json
from pathlib import Path
from typing import Any

from storage.vocabularies.library import LIBRARY, LibraryTokenizer, is_unicode_form, steps_of
from storage.vocabularies.printable_bytes import from_printable

_KEEPS_ALL = {"Split", "Digits", "Punctuation", "ByteLevel"}  # steps that take nothing from a text


def check_pipeline(path: Path, found: dict[str, Any]) -> None:
    """Raises: ValueError for a model, a step or an added token with which text would be lost."""
    _check_model(path, found["model"])
    _check_steps(path, found)
    _check_words(path, found.get("added_tokens") or [])


def _check_model(path: Path, model: dict[str, Any]) -> None:
    kind = model.get("type", "BPE")
    marked = any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
    if kind != "BPE" or model.get("byte_fallback") or model.get("dropout") or marked:
        what = f"of type {kind!s:.80}" if kind != "BPE" else "BPE with byte_fallback, or the like"
        raise ValueError(
            f"{path} is {what}; only byte-level BPE can be used (GPT-2's, Llama 3's, Qwen's and "
            "the like; not SentencePiece's or BERT's)"
        )


def _check_steps(path: Path, found: dict[str, Any]) -> None:
    """Raises: ValueError for a step after which text cannot be had back from the ids."""
    normalizers = steps_of(found.get("normalizer"), "normalizers")
    if not all(map(is_unicode_form, normalizers)):
        raise ValueError(
            f"{path} has the normalizer {json.dumps(normalizers)[:200]}, which changes the text; "
            "only byte-level BPE without a normalizer, or with NFC and the like, can be used"
        )
    steps = steps_of(found.get("pre_tokenizer"), "pretokenizers")
    byte_steps = [step for step in steps if step["type"] == "ByteLevel"]
    loses = any(
        step["type"] not in _KEEPS_ALL or step.get("behavior") == "Removed" for step in steps
    )
    if loses or len(byte_steps) != 1 or steps[-1] != byte_steps[0]:
        raise ValueError(
            f"{path} is no byte-level BPE: it splits text by {json.dumps(steps)[:200]}, which does "
            "not end with ByteLevel or loses text; give another tokenizer"
        )
    if byte_steps[0].get("add_prefix_space", True):
        raise ValueError(
            f"{path} adds a space before each text (add_prefix_space), so that ids do not give the "
            "text back; set it to false in the file, or give another tokenizer"
        )


def _check_words(path: Path, added: list[dict[str, Any]]) -> None:
    strips = [t["content"] for t in added if not t["special"] and (t["lstrip"] or t["rstrip"])]
    if strips:
        raise ValueError(
            f"{path} has added tokens that swallow the spaces beside them, such as {strips[0]!r}, "
            "so that ids do not give the text back; give another tokenizer"
        )


def check_ids(
    path: Path, library: LibraryTokenizer, special: dict[str, int], words: dict[str, int]
) -> None:
    """Raises: ValueError if the library has other ids, or gives a text that of a special token."""
    for token, rank in (special | words).items():
        if (found := library.id_of(token)) != rank:
            raise ValueError(
                f"{path} gives {token!r} the id {rank}, but {LIBRARY} uses {found}; the file is "
                "damaged, copy it again"
            )
    for name, rank in special.items():
        meant = (from_printable(name) or b"").decode(errors="ignore")
        if rank in (*library.encode(name), *library.encode(meant)):
            raise ValueError(
                f"{path} has the special token {name!r} as an ordinary one, too: a text with this "
                "name gets its id, so it could not mark anything; give another tokenizer"
            )
