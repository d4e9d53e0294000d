"""A `tokenizer.json` of Hugging Face's `tokenizers`: byte-level byte pairs of any family.

tiktoken encodes several times as fast as that library. It gives the same ids where one pattern
splits the text and the merges follow from the order of the ids, and then the pattern is kept. The
rest is encoded by the library.
"""

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import tiktoken

from storage.byte_pairs import (
    END_OF_TEXT,
    GPT2_PATTERN,
    Additions,
    BytePairs,
    ranks_file_of,
)
from storage.vocabularies.json_checks import check_ids, check_pipeline
from storage.vocabularies.library import LibraryTokenizer, steps_of
from storage.vocabularies.printable_bytes import from_printable

# What opens or ends a document in the known families, in the order in which it is looked for.
_DEEPSEEKS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
_END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", _DEEPSEEKS, "</s>", "<eos>", "<|eos|>")
_NAMES_SHOWN = 8
# Adds no token to a text, and gives bytes back as text.
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
log = logging.getLogger(__name__)
_TOKENS_COMPARED = 4000
# Every kind of character that patterns tell apart.
_EVERY_KIND = "It's WE'LL naïve  x\n\n\t 12345½ ,.;-_$+ 日本語 e\u0301 \u00a0\x00\r\n end "


def pairs_of_json(
    path: Path, content: bytes, name: str, end_of_text: str | None = None, eos: str | None = None
) -> BytePairs:
    """The tokenizer of a tokenizer.json.

    `end_of_text`: its special token that opens each document. Default: by name, else `eos`.
    Raises: ValueError if it is no byte-level one, or damaged.
    """
    try:
        found = json.loads(content.decode())
        return _pairs(path, found, content, name, end_of_text, eos)
    except (UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error!s:.200}); copy it again") from error
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path} does not have the structure of a tokenizer ({error!r:.200}); copy it again"
        ) from error


def _pairs(
    path: Path,
    found: dict[str, Any],
    content: bytes,
    name: str,
    end_of_text: str | None,
    eos: str | None,
) -> BytePairs:
    check_pipeline(path, found)
    vocabulary: dict[str, int] = found["model"]["vocab"]
    added = found.get("added_tokens") or []
    ids = [*vocabulary.values(), *(token["id"] for token in added)]
    if not all(type(rank) is int and rank >= 0 for rank in ids):
        raise TypeError("an id is not a whole number")
    special = {token["content"]: token["id"] for token in added if token["special"]}
    end = _end_token(path, {*vocabulary, *(t["content"] for t in added)}, special, end_of_text, eos)
    if end not in special:
        content = _as_special(found, end, {**vocabulary, **{t["content"]: t["id"] for t in added}})
        return pairs_of_json(path, content, name, end, eos)
    words = {token["content"]: token["id"] for token in added if token["content"] not in special}
    try:
        library = LibraryTokenizer(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check_ids(path, library, special, words)
    rank_of = {
        token: rank
        for text, rank in sorted(vocabulary.items(), key=lambda item: item[1])
        if text not in special and text not in words and (token := from_printable(text)) is not None
    }
    pattern = _pattern(found.get("pre_tokenizer") or {})
    follows = _follows_from_ids(found["model"], library, special)
    agrees = follows and _agrees_on_sample(pattern, rank_of, library, list(words))
    if words.keys() & vocabulary.keys() or not agrees:
        pattern = ""
    plain = end == END_OF_TEXT and _is_plain(found, rank_of, special, words)
    if plain and pattern:
        if later := [name for name in special if name != end]:
            log.info(
                "%s: %d tokens after %s are left out: %s",
                *(path, len(later), end, ", ".join(map(repr, later[:_NAMES_SHOWN]))),
            )
        return BytePairs(name, pattern, ranks_file_of(rank_of))
    kept = _in_one_form(found)
    additions = Additions(special[end], tuple(special.items()), tuple(words.items()), kept)
    return BytePairs(name, pattern, ranks_file_of(rank_of), additions)


def _in_one_form(found: dict[str, Any]) -> bytes:
    """The file as it is kept: only what decides ids, so that copies of a tokenizer are the same."""
    model = found["model"]
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    kept = {
        **found,
        "model": {**model, "merges": merges},
        "post_processor": {**_BYTES, "trim_offsets": False},
        "decoder": _BYTES,
        "truncation": None,
        "padding": None,
    }
    return json.dumps(kept, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _end_token(
    path: Path,
    known: set[str],
    special: dict[str, int],
    end_of_text: str | None,
    eos: str | None,
) -> str:
    """The token that opens each document."""
    if end_of_text is not None and end_of_text not in known:
        raise ValueError(
            f"{path} has no token {end_of_text!r} for --end-of-text; {_named(special)}"
        )
    named = [token for token in _END_TOKENS if token in known]
    found = end_of_text or next(iter(named), eos if eos in special else None)
    if found is None:
        raise ValueError(
            f"{path} has no end-of-text of a known name to open each document with; name its token "
            f"with --end-of-text ({_named(special)})"
        )
    return found


def _as_special(found: dict[str, Any], end: str, ids: dict[str, int]) -> bytes:
    """The file with end-of-text as a special token, so that no text gives its id."""
    added = found.get("added_tokens") or []
    entry = special_entry(end, ids[end])
    # In its place: the library numbers added tokens in the order of the list.
    added = [entry if token["content"] == end else token for token in added]
    added += [entry] if entry not in added else []
    return json.dumps({**found, "added_tokens": added}, ensure_ascii=False).encode()


def special_entry(content: str, rank: int) -> dict[str, Any]:
    """A special token as a tokenizer.json lists it."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": rank, "content": content, **plain, "special": True}


def _named(special: dict[str, int]) -> str:
    if not special:
        return "it has no special tokens"
    names = ", ".join(list(special)[:_NAMES_SHOWN])
    more = len(special) - _NAMES_SHOWN
    return f"its special tokens are {names}" + (f" and {more} more" if more > 0 else "")


def _pattern(step: dict[str, Any]) -> str:
    """The pattern of a `Split` before a `ByteLevel` step; GPT-2's for a `ByteLevel` step alone.

    Empty if text is split in another way.
    """
    steps = steps_of(step, "pretokenizers")
    if len(steps) == 1 and steps[0].get("use_regex", True):
        return GPT2_PATTERN  # in tiktoken's spelling
    splits = len(steps) == 2 and steps[0]["type"] == "Split" and not steps[0].get("invert")
    if splits and not steps[1].get("use_regex", True) and steps[0]["behavior"] == "Isolated":
        return steps[0]["pattern"].get("Regex", "")
    return ""


def _agrees_on_sample(
    pattern: str, rank_of: dict[bytes, int], library: LibraryTokenizer, words: list[str]
) -> bool:
    """Whether tiktoken gives the library's ids for every kind of character and some tokens.

    It cannot use every pattern, and drops what one does not match. Preparation compares documents.
    """
    if not pattern:
        return False
    some = list(rank_of)[:: max(1, len(rank_of) // _TOKENS_COMPARED)]
    text = _EVERY_KIND + " ".join(token.decode(errors="ignore") for token in some)
    for word in words:
        text = text.replace(word, "")
    text = library.normalised(text)
    try:
        found = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=rank_of, special_tokens={})
        return found.encode_ordinary(text) == library.encode(text).tolist()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # tiktoken panics, which is no Exception, if a pattern matches nothing
        return False


def _follows_from_ids(
    model: dict[str, Any], library: LibraryTokenizer, special: dict[str, int]
) -> bool:
    """Whether the library's merges give what tiktoken's rule gives: join what has the lowest id.

    They do if they are in the order of their ids, and if each token is the result of merges of its
    own bytes: then no two tokens ever meet whose join is a token but no merge. Of tokens that
    merges do not give, all joins of two others must be merges, and whole pieces must be looked up.
    """
    vocabulary: dict[str, int] = model["vocab"]
    merges = [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in model["merges"]]
    ids = [vocabulary["".join(merge)] for merge in merges]
    if any(first > second for first, second in pairwise(ids)):
        return False
    tokens = [text for text in vocabulary if len(text) > 1 and text not in special]
    tokens = [text for text in tokens if from_printable(text) is not None]
    others = library.not_merged(tokens)
    if others and not model.get("ignore_merges"):
        return False
    known = set(merges) if others else set()
    halves = ((text[:at], text[at:]) for text in others for at in range(1, len(text)))
    return all(pair in known for pair in halves if {*pair} <= vocabulary.keys())


def _is_plain(
    found: dict[str, Any], rank_of: dict[bytes, int], special: dict[str, int], words: dict[str, int]
) -> bool:
    """Whether it is what our own tokenizers are: ids without gaps, then end-of-text."""
    last = len(rank_of)
    unbroken = list(rank_of.values()) == list(range(last))
    after = all(rank > last for name, rank in special.items() if name != END_OF_TEXT)
    normalised = steps_of(found.get("normalizer"), "normalizers")
    return unbroken and special.get(END_OF_TEXT) == last and after and not words and not normalised
