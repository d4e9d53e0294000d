"""A tokenizer in Hugging Face's files: `tokenizer.json`, or `vocab.json` with `merges.txt`.

These files write bytes as printable characters and list the merges. BytePairs has ranks only; the
merges follow from them. The conversion is exact in both directions: a text has the same ids.
"""

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import tiktoken

from model.hf_format.published import file_in
from storage.atomic import read_json, write_json, write_text
from storage.byte_pairs import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BytePairs,
    byte_characters,
    ranks_file,
)

_MERGES_HEADING = "#version: 0.2"
_TOKENS_SHOWN = 8
# Every kind of character that patterns tell apart.
_EVERY_KIND = "It's WE'LL naïve  x\n\n\t 12345½ ,.;-_$+ 日本語 e\u0301 \u00a0\x00\r\n end "

log = logging.getLogger(__name__)


def read_hf_tokenizer(folder: Path, name: str) -> BytePairs | None:
    """The tokenizer in Hugging Face's files; None if there are no such files.

    Tokens after end-of-text, which were added to the model later, are left out with a message.
    Raises: ValueError naming what differs from byte-level BPE as in GPT-2.
    """
    path = file_in(folder, "tokenizer.json")
    vocabulary, merges = (file_in(folder, file) for file in ("vocab.json", "merges.txt"))
    try:
        if path.is_file():
            return _from_tokenizer_json(path, name)
        path = vocabulary
        if vocabulary.is_file() and merges.is_file():
            return _from_two_files(vocabulary, merges, name)
    except (KeyError, TypeError, IndexError, AttributeError, UnicodeError) as error:
        raise ValueError(
            f"{path} does not have the structure of a tokenizer ({error!r:.200}); copy it again"
        ) from error
    return None


def _from_two_files(vocabulary: Path, merges: Path, name: str) -> BytePairs:
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return _from_vocabulary(vocabulary, name, GPT2_PATTERN, read_json(vocabulary), pairs)


def _from_tokenizer_json(path: Path, name: str) -> BytePairs:
    """The tokenizer that a tokenizer.json describes."""
    content = read_json(path)
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or content.get("normalizer") is not None:
        raise ValueError(
            f"{path} is of type {model.get('type')!s:.80} with normalizer "
            f"{content.get('normalizer')!s:.80}; only byte-level BPE without a normalizer can be "
            "read"
        )
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    merges = [line.split(" ") if isinstance(line, str) else line for line in model["merges"]]
    pattern = _pattern(path, content.get("pre_tokenizer") or {})
    return _from_vocabulary(path, name, pattern, model["vocab"] | added, merges)


def _pattern(path: Path, step: dict[str, Any]) -> str:
    """The pattern of a `Split` before a `ByteLevel` step; GPT-2's for a `ByteLevel` step alone."""
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    last = steps[-1]
    plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space", True)
    if plain and len(steps) == 1 and last.get("use_regex", True):
        return GPT2_PATTERN  # in tiktoken's spelling
    splits = steps[0].get("type") == "Split" and not steps[0].get("invert")
    if plain and len(steps) == 2 and splits and not last.get("use_regex", True):
        found = steps[0]["pattern"].get("Regex")
        if found and steps[0].get("behavior") == "Isolated":
            return found
    raise ValueError(
        f"{path} splits text in another way than GPT-2 (pre_tokenizer {json.dumps(step)[:200]}); "
        "give the tokenizer in Ratchet's format with --tokenizer"
    )


def _from_vocabulary(
    path: Path, name: str, pattern: str, vocabulary: dict[str, int], merges: list[list[str]]
) -> BytePairs:
    """The tokenizer of this vocabulary, if its merges are those that follow from its ids.

    Raises: ValueError if they are not, or if a token is no sequence of bytes.
    """
    if not all(type(rank) is int for rank in vocabulary.values()):
        raise TypeError("an id is not a whole number")
    last = vocabulary.get(END_OF_TEXT, len(vocabulary) - 1)
    later = sorted(text for text, rank in vocabulary.items() if rank > last)
    vocabulary = {text: rank for text, rank in vocabulary.items() if rank <= last}
    # An id is a row of the embedding and a rank of tiktoken, which puts end-of-text last.
    unbroken = set(vocabulary.values()) == set(range(len(vocabulary)))
    if not unbroken or vocabulary.get(END_OF_TEXT) != len(vocabulary) - 1:
        raise ValueError(
            f"{path} has {len(vocabulary)} tokens and {END_OF_TEXT} at "
            f"{vocabulary.get(END_OF_TEXT)}; ids must have no gaps and {END_OF_TEXT} the last, "
            "except for tokens that were added to the model later"
        )
    if later:
        log.info(
            "%s: %d tokens after %s are left out: %s",
            *(path, len(later), END_OF_TEXT, ", ".join(map(repr, later[:_TOKENS_SHOWN]))),
        )
    byte_of = {character: byte for byte, character in byte_characters().items()}
    tokens = []
    for text, rank in sorted(vocabulary.items(), key=lambda item: item[1])[:-1]:
        if not set(text) <= byte_of.keys():
            raise ValueError(
                f"{path} has the token {text!r} at {rank}, which is not a sequence of bytes; only "
                f"{END_OF_TEXT} may be added to a byte-level vocabulary"
            )
        tokens.append(bytes(byte_of[character] for character in text))
    pairs = BytePairs(name, pattern, ranks_file(tokens))
    if [list(pair) for pair in _printable_merges(pairs)] != merges:
        raise ValueError(
            f"the merges of {path} are not those that its ids imply, so tiktoken would split text "
            "differently; give another tokenizer that has the same ids with --tokenizer"
        )
    _check_pattern(path, pairs)
    return pairs


def _check_pattern(path: Path, pairs: BytePairs) -> None:
    """Raises: ValueError if the pattern is none, or leaves text out, which tiktoken would drop."""
    try:
        ranks = {token: rank for rank, token in enumerate(pairs.tokens)}
        encoding = tiktoken.Encoding(
            pairs.name, pat_str=pairs.pattern, mergeable_ranks=ranks, special_tokens={}
        )
        found = encoding.decode(encoding.encode_ordinary(_EVERY_KIND))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} splits text by {pairs.pattern!r:.80}, which is no pattern ({error}); copy it "
            "again"
        ) from error
    if found != _EVERY_KIND:
        raise ValueError(
            f"{path} splits text by {pairs.pattern!r:.80}, which leaves text out; give another "
            "tokenizer with --tokenizer"
        )


def _printable_merges(pairs: BytePairs) -> list[tuple[str, str]]:
    """The merges in printable characters."""
    characters = byte_characters()

    def printable(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    return [(printable(left), printable(right)) for left, right in _merges_of(pairs)]


def _merges_of(pairs: BytePairs) -> list[tuple[bytes, bytes]]:
    """The two tokens that each token of several bytes is merged from, by rank.

    Raises: ValueError for a token that is not a merge of two others.
    """
    # The two parts are what remains of the token when only lower ranks are merged.
    ranks = {token: rank for rank, token in enumerate(pairs.tokens)}
    found = []
    for rank, token in enumerate(pairs.tokens):
        if len(token) > 1:
            parts = _merged(token, ranks, below=rank)
            if len(parts) != 2:
                raise ValueError(
                    f"token {token!r} of tokenizer {pairs.name} is made of {len(parts)} earlier "
                    "ones, but Hugging Face merges two at a time; it cannot be exported"
                )
            found.append((parts[0], parts[1]))
    return found


def _merged(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    parts = [bytes([byte]) for byte in token]
    while True:
        best, at = min(
            (ranks.get(left + right, below), i) for i, (left, right) in enumerate(pairwise(parts))
        )
        if best >= below:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def write_hf_tokenizer(folder: Path, pairs: BytePairs, context_length: int) -> None:
    """Write tokenizer.json, vocab.json, merges.txt and tokenizer_config.json into `folder`."""
    characters = byte_characters()
    vocabulary = {
        "".join(characters[byte] for byte in token): rank for rank, token in enumerate(pairs.tokens)
    }
    if END_OF_TEXT in vocabulary:
        raise ValueError(
            f"tokenizer {pairs.name} has {END_OF_TEXT} as ordinary text at "
            f"{vocabulary[END_OF_TEXT]}, which Hugging Face's files cannot distinguish from the "
            "special one; it cannot be exported"
        )
    vocabulary[END_OF_TEXT] = pairs.end_of_text
    merges = [f"{left} {right}" for left, right in _printable_merges(pairs)]
    write_json(folder / "tokenizer.json", _tokenizer_json(pairs, vocabulary, merges))
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join([_MERGES_HEADING, *merges]) + "\n")
    specials = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    is_gpt2s = pairs.pattern == GPT2_PATTERN
    settings = {
        # GPT2Tokenizer always splits by GPT-2's pattern; the generic class reads tokenizer.json.
        "tokenizer_class": "GPT2Tokenizer" if is_gpt2s else "PreTrainedTokenizerFast",
        **specials,
        "add_prefix_space": False,
        "model_max_length": context_length,
        # Otherwise decoding removes spaces before punctuation, and text does not round-trip.
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)


def _tokenizer_json(
    pairs: BytePairs, vocabulary: dict[str, int], merges: list[str]
) -> dict[str, Any]:
    """The content of tokenizer.json."""
    is_gpt2s = pairs.pattern == GPT2_PATTERN
    bytes_step = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": is_gpt2s,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": pairs.pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    sequence = {"type": "Sequence", "pretokenizers": [split, bytes_step]}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = {"id": pairs.end_of_text, "content": END_OF_TEXT, **plain, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special],
        "normalizer": None,
        "pre_tokenizer": bytes_step if is_gpt2s else sequence,
        "post_processor": {**bytes_step, "trim_offsets": False},
        "decoder": bytes_step,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
