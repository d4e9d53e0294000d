"""A tokenizer with fewer ids: its first merges, and end-of-text as the last id."""

import json
from pathlib import Path

from storage.byte_pairs import END_OF_TEXT, Additions, BytePairs, ranks_file_of
from storage.vocabularies.tokenizer_json import pairs_of_json, special_entry


def cut_byte_pairs(pairs: BytePairs, n_vocab: int, name: str) -> BytePairs:
    """The same tokenizer with only its first `n_vocab` ids, which keep their tokens.

    End-of-text becomes the last, unless it is among them; other special tokens after it are gone.
    Raises: ValueError if there are fewer ids, or single bytes would lose their token.
    """
    if n_vocab >= pairs.n_vocab:
        raise ValueError(
            f"vocab_size={n_vocab} cuts nothing off tokenizer {pairs.name}, which has "
            f"{pairs.n_vocab} ids; give fewer"
        )
    last_byte = max(pairs.rank_of[bytes([byte])] for byte in range(256))
    if n_vocab < last_byte + 2:
        raise ValueError(
            f"vocab_size={n_vocab} leaves out single bytes of tokenizer {pairs.name}; give at "
            f"least {last_byte + 2}"
        )
    moves = pairs.end_of_text >= n_vocab
    kept = n_vocab - 1 if moves else n_vocab
    if pairs.additions is not None and (content := pairs.additions.tokenizer_json):
        cut = _cut_json(content, kept, pairs.end_token)
        return pairs_of_json(Path("tokenizer.json"), cut, name, pairs.end_token)
    rank_of = {token: rank for token, rank in pairs.rank_of.items() if rank < kept}
    end = kept if moves else pairs.end_of_text
    if list(rank_of.values()) == list(range(end)) and pairs.end_token == END_OF_TEXT:
        return BytePairs(name, pairs.pattern, ranks_file_of(rank_of))
    special = {text: rank for text, rank in pairs.special.items() if rank < kept}
    special[pairs.end_token] = end
    return BytePairs(
        name, pairs.pattern, ranks_file_of(rank_of), Additions(end, tuple(special.items()))
    )


def _cut_json(content: bytes, kept: int, end: str) -> bytes:
    """A tokenizer.json with only the ids below `kept`; end-of-text has that one if it has none."""
    found = json.loads(content)
    model = found["model"]
    vocabulary = {text: rank for text, rank in model["vocab"].items() if rank < kept}
    model["vocab"] = vocabulary
    model["merges"] = [
        [left, right]
        for left, right in model["merges"]
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]
    added = [token for token in found["added_tokens"] if token["id"] < kept]
    if all(token["content"] != end for token in added):
        # Also there, since the library numbers what is only added by itself.
        vocabulary[end] = kept
        added.append(special_entry(end, kept))
    found["added_tokens"] = added
    return json.dumps(found, ensure_ascii=False).encode()
