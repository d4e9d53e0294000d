"""The encodings of tiktoken, from their files of ranks: pattern and special tokens by name."""

from dataclasses import dataclass
from pathlib import Path

from storage.byte_pairs import (
    END_OF_TEXT,
    PATTERNS,
    Additions,
    BytePairs,
    gpt2_byte_pairs,
)


@dataclass(frozen=True)
class _Encoding:
    """What a file of ranks does not say of its encoding."""

    pattern: str
    ranks: int
    """How many the file has."""
    special: dict[str, int]
    end: str = END_OF_TEXT


# Source: https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py
_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
# Source: https://github.com/meta-llama/llama3/blob/main/llama/tokenizer.py
_LLAMA3 = [
    *("<|begin_of_text|>", "<|end_of_text|>"),
    *(f"<|reserved_special_token_{number}|>" for number in range(4)),
    *("<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"),
    *(f"<|reserved_special_token_{number}|>" for number in range(5, 251)),
]
_LLAMA3_RANKS = 128_000
_ENCODINGS = {
    "gpt2": _Encoding("gpt2", 50_256, {END_OF_TEXT: 50_256}),
    "r50k_base": _Encoding("gpt2", 50_256, {END_OF_TEXT: 50_256}),
    "p50k_base": _Encoding("gpt2", 50_280, {END_OF_TEXT: 50_256}),
    "cl100k_base": _Encoding(
        "gpt4",
        100_256,
        {
            END_OF_TEXT: 100_257,
            **{name: 100_258 + number for number, name in enumerate(_FIM)},
            "<|endofprompt|>": 100_276,
        },
    ),
    "o200k_base": _Encoding("o200k", 199_998, {END_OF_TEXT: 199_999, "<|endofprompt|>": 200_018}),
    "llama3": _Encoding(
        "gpt4",
        _LLAMA3_RANKS,
        {name: _LLAMA3_RANKS + number for number, name in enumerate(_LLAMA3)},
        "<|end_of_text|>",
    ),
}
_LLAMA3_FILE = "tokenizer.model"  # its name in Meta's folders; SentencePiece's have it too


def is_rank_file(content: bytes) -> bool:
    """Whether a file begins as tiktoken's do: the base64 of a token, a space and a rank."""
    fields = content.split(b"\n", 1)[0].split(b" ")
    return len(fields) == 2 and fields[0].isascii() and fields[1].strip().isdigit()


def pairs_of_rank_file(
    path: Path, content: bytes, name: str, end_of_text: str | None = None
) -> BytePairs:
    """The encoding whose ranks a file holds, known by the file's name.

    Raises: ValueError for another name, or if it does not hold the encoding's ranks.
    """
    known = _ENCODINGS.get("llama3" if path.name == _LLAMA3_FILE else path.stem)
    if known is None:
        names = ", ".join(f"{encoding}.tiktoken" for encoding in _ENCODINGS)
        raise ValueError(
            f"{path} holds ranks of tiktoken, but not the pattern that splits text; give the file "
            f"the name of its encoding ({names}), or the tokenizer.json of its model"
        )
    count = len(content.splitlines())
    if count != known.ranks:
        raise ValueError(
            f"{path} has {count} ranks, but {path.stem} has {known.ranks}; copy it again, or give "
            "it the name of its own encoding"
        )
    end = end_of_text or known.end
    if end not in known.special:
        raise ValueError(
            f"{path} has no special token {end!r} for --end-of-text; it has "
            + ", ".join(list(known.special)[:8])
        )
    gpt2 = gpt2_byte_pairs()
    if known.special == gpt2.special and content.split() == gpt2.ranks.split():
        return gpt2
    additions = Additions(known.special[end], tuple(known.special.items()))
    if known.special == {END_OF_TEXT: known.ranks}:
        additions = None
    return BytePairs(name, PATTERNS[known.pattern], content, additions)
