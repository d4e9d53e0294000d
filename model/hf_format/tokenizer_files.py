"""A tokenizer in Hugging Face's files: `tokenizer.json`, or `vocab.json` with `merges.txt`.

There, bytes are printable characters and merges are spelled out; here they follow from the ranks
of the tokens. Either gives the other, and a text has the same ids.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from storage.atomic import read_json, write_json, write_text
from storage.byte_pairs import END_OF_TEXT, GPT2_PATTERN, BytePairs, ranks_file

MERGES_HEADING = "#version: 0.2"


def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in Hugging Face's files.

    Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py bytes_to_unicode
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


def read_hf_tokenizer(folder: Path, name: str) -> BytePairs | None:
    """The tokenizer in Hugging Face's files, None if there are none.

    Raises: ValueError saying what in them is not byte-level BPE as GPT-2's is.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return _from_whole(path, name)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{path} is not laid out as a tokenizer ({error!r}); copy it again"
            ) from error
    path = folder / "vocab.json"
    if path.is_file() and (folder / "merges.txt").is_file():
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        return _from_vocabulary(path, name, GPT2_PATTERN, read_json(path), merges)
    return None


def _from_whole(path: Path, name: str) -> BytePairs:
    """The tokenizer that tokenizer.json alone describes."""
    whole = read_json(path)
    model = whole["model"]
    if model.get("type", "BPE") != "BPE" or whole.get("normalizer") is not None:
        raise ValueError(
            f"{path} is of type {model.get('type')} with normalizer {whole.get('normalizer')}; "
            "only byte-level BPE without a normalizer can be read"
        )
    added = {token["content"]: token["id"] for token in whole.get("added_tokens") or []}
    merges = [line.split(" ") if isinstance(line, str) else line for line in model["merges"]]
    pattern = _pattern(path, whole.get("pre_tokenizer") or {})
    return _from_vocabulary(path, name, pattern, model["vocab"] | added, merges)


def _pattern(path: Path, step: dict[str, Any]) -> str:
    """The pattern of a `ByteLevel` step alone, or after a `Split` that has the pattern."""
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    last = steps[-1]
    plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space", True)
    if plain and len(steps) == 1 and last.get("use_regex", True):
        return GPT2_PATTERN  # in tiktoken's spelling
    cuts = steps[0].get("type") == "Split" and not steps[0].get("invert")
    if plain and len(steps) == 2 and cuts and not last.get("use_regex", True):
        found = steps[0]["pattern"].get("Regex")
        if found and steps[0].get("behavior") == "Isolated":
            return found
    raise ValueError(
        f"{path} cuts text in a way that is not GPT-2's (pre_tokenizer {json.dumps(step)[:200]}); "
        "give our spelling of the tokenizer with --tokenizer"
    )


def _from_vocabulary(
    path: Path, name: str, pattern: str, vocabulary: dict[str, int], merges: list[list[str]]
) -> BytePairs:
    """Ranks from ids, once ids and merges are known to be in the same order."""
    last = len(vocabulary) - 1
    if sorted(vocabulary.values()) != list(range(last + 1)) or vocabulary.get(END_OF_TEXT) != last:
        raise ValueError(
            f"{path} has {last + 1} tokens and {END_OF_TEXT} at {vocabulary.get(END_OF_TEXT)}; "
            f"ids must have no gaps and {END_OF_TEXT} the last, {last}"
        )
    byte_of = {character: byte for byte, character in byte_characters().items()}
    tokens = []
    for text, rank in sorted(vocabulary.items(), key=lambda item: item[1])[:-1]:
        if not set(text) <= byte_of.keys():
            raise ValueError(
                f"{path} has the token {text!r} at {rank}, which does not stand for bytes; only "
                f"{END_OF_TEXT} may be added to a byte-level vocabulary"
            )
        tokens.append(bytes(byte_of[character] for character in text))
    pairs = BytePairs(name, pattern, ranks_file(tokens))
    if [list(pair) for pair in _spelled(pairs)] != merges:
        raise ValueError(
            f"the merges of {path} are not those that its ids imply, so tiktoken would cut text "
            "differently; give another tokenizer that has the same ids with --tokenizer"
        )
    return pairs


def _spelled(pairs: BytePairs) -> list[tuple[str, str]]:
    characters = byte_characters()

    def spell(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    return [(spell(left), spell(right)) for left, right in merges_of(pairs)]


def merges_of(pairs: BytePairs) -> list[tuple[bytes, bytes]]:
    """The pair that each token of several bytes is merged from, by rank.

    It is what is left of the token when only lower ranks are merged.
    Raises: ValueError for a token that no pair of others makes.
    """
    ranks = {token: rank for rank, token in enumerate(pairs.tokens)}
    found = []
    for rank, token in enumerate(pairs.tokens):
        if len(token) > 1:
            parts = _merged(token, ranks, below=rank)
            if len(parts) != 2:
                raise ValueError(
                    f"token {token!r} of tokenizer {pairs.name} is made of {len(parts)} earlier "
                    "ones and Hugging Face merges two at a time; it cannot be written there"
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
            f"{vocabulary[END_OF_TEXT]}, which Hugging Face's files cannot tell from the special "
            "one; it cannot be written there"
        )
    vocabulary[END_OF_TEXT] = pairs.end_of_text
    merges = [f"{left} {right}" for left, right in _spelled(pairs)]
    write_json(folder / "tokenizer.json", _whole(pairs, vocabulary, merges))
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join([MERGES_HEADING, *merges]) + "\n")
    specials = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    of_gpt2 = pairs.pattern == GPT2_PATTERN
    settings = {
        "tokenizer_class": "GPT2Tokenizer" if of_gpt2 else "PreTrainedTokenizerFast",
        **specials,
        "add_prefix_space": False,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)


def _whole(pairs: BytePairs, vocabulary: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """The content of tokenizer.json."""
    of_gpt2 = pairs.pattern == GPT2_PATTERN
    bytes_step = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": of_gpt2,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": pairs.pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    cutting = bytes_step if of_gpt2 else {"type": "Sequence", "pretokenizers": [split, bytes_step]}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = {"id": pairs.end_of_text, "content": END_OF_TEXT, **plain, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special],
        "normalizer": None,
        "pre_tokenizer": cutting,
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
