"""A tokenizer in Hugging Face's files: `tokenizer.json`, `vocab.json` and `merges.txt`.

These files write bytes as printable characters and list the merges. BytePairs has ranks only; the
merges follow from them. Reading them is in storage/vocabularies/. The conversion is exact in both
directions: a text has the same ids.
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from storage.atomic import write_json, write_text
from storage.byte_pairs import GPT2_PATTERN, BytePairs
from storage.vocabularies.printable_bytes import as_printable
from storage.vocabularies.tokenizer_json import special_entry

_MERGES_HEADING = "#version: 0.2"


def _merges_of(pairs: BytePairs) -> list[tuple[bytes, bytes]]:
    """The two tokens that each token of several bytes is merged from, by rank.

    A token that is no merge of two others has none: it is only looked up whole.
    """
    # The two parts are what remains of the token when only lower ranks are merged.
    found = []
    for token, rank in pairs.rank_of.items():
        if len(token) > 1:
            parts = _merged(token, pairs.rank_of, below=rank)
            if len(parts) == 2:
                found.append((parts[0], parts[1]))
    return found


def _merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    parts = [bytes([byte]) for byte in token]
    while True:
        best, at = min(
            (ranks.get(left + right, below), i) for i, (left, right) in enumerate(pairwise(parts))
        )
        if best >= below:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def write_hf_tokenizer(folder: Path, pairs: BytePairs, context_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`, and GPT-2's two files.

    The two files, vocab.json and merges.txt, are not written where a tokenizer.json is given.
    """
    is_gpt2s = pairs.pattern == GPT2_PATTERN and pairs.additions is None
    if pairs.additions is not None and (content := pairs.additions.tokenizer_json):
        write_text(folder / "tokenizer.json", content.decode())
    else:
        _write_ranks(folder, pairs)
    specials = dict.fromkeys(("bos_token", "eos_token", "unk_token"), pairs.end_token)
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


def _write_ranks(folder: Path, pairs: BytePairs) -> None:
    vocabulary = {as_printable(token): rank for token, rank in pairs.rank_of.items()}
    if taken := sorted(vocabulary.keys() & pairs.special.keys()):
        raise ValueError(
            f"tokenizer {pairs.name} has {taken[0]} as ordinary text at {vocabulary[taken[0]]}, "
            "which Hugging Face's files cannot distinguish from the special one; it cannot be "
            "exported"
        )
    long = sum(len(token) > 1 for token in pairs.rank_of)
    merges = [f"{as_printable(left)} {as_printable(right)}" for left, right in _merges_of(pairs)]
    content = _tokenizer_json(pairs, vocabulary, merges)
    if len(merges) < long:  # a piece that is a token is that token, as in tiktoken
        content["model"]["ignore_merges"] = True
    vocabulary |= pairs.special
    write_json(folder / "tokenizer.json", content)
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join([_MERGES_HEADING, *merges]) + "\n")


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
    added = [special_entry(name, rank) for name, rank in pairs.special.items()]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
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
