"""The pattern that splits text into words before bytes are merged: by name, or from a file.

Two libraries read it: tiktoken, whose ids are ours, and Hugging Face's `tokenizers`, which learns
merges and reads exported tokenizers. Their regular expressions differ, so the words are compared.
"""

import os
import re
from itertools import pairwise, product
from pathlib import Path

import tiktoken

from data_prep.vocabulary.by_tokenizers import check_can_learn_words, words_of
from data_prep.vocabulary.silence import silenced
from storage.byte_pairs import PATTERNS

_LONGEST = 10_000  # bytes of a file with a pattern
# A character of each kind that patterns tell apart, in all sequences of three.
_KINDS = "aZéǅʰ日ก\u0301\u20dd1½٣Ⅷ!'_-/$€ \t\n\r\xa0\u3000\u2028\u200d🦜\x00\x7f\ue000"
_SENTENCES = (
    "It's a naïve text: WE'LL see, I'Ve said, they'd have'nt 1234567 12,345.67 ½ x = y+1;\r\n\r\n"
    "def f(x):\n    return {'a': x}\t# done  \n\n\n日本語の文。 สวัสดี 🏳️‍🌈🦜 camelCase "
    "HTTPServer http://example.org/a_b?c=d&e='f' ---- ... ?!\n   \n end "
)


def _probe() -> str:
    """A text of all kinds of characters, in all neighbourhoods."""
    return _SENTENCES + "".join(map("".join, product(_KINDS, repeat=3))) + _SENTENCES


def _characters() -> str:
    """Every character that Unicode has assigned, and some more."""
    return "".join(map(chr, (*range(0xD800), *range(0xE000, 0x40000))))


def chosen_pattern(choice: str) -> str:
    """The pattern of this name, or in this file.

    Raises: ValueError if there is none, or if it cannot split every text into the same words.
    """
    if choice in PATTERNS:
        return PATTERNS[choice]
    path = Path(os.path.expanduser(choice))  # an unknown ~user stays
    if not path.is_file():
        raise ValueError(
            f"pattern={choice} is neither one of {', '.join(PATTERNS)} nor a file; give a name or "
            "a text file with a regular expression"
        )
    pattern = _read(path)
    if pattern not in PATTERNS.values():
        _check(f"the pattern in {path}", pattern)
    return pattern


def _read(path: Path) -> str:
    content = path.read_bytes()
    try:
        if len(content) > _LONGEST:
            raise ValueError(f"it has {len(content)} bytes, and a pattern at most {_LONGEST}")
        text = content.decode("utf-8-sig")
    except ValueError as error:
        raise ValueError(f"{path} holds no pattern: {error}") from error
    # Spaces at the end may be part of it, but not the line break.
    pattern = re.sub(r"\r?\n\Z", "", text)
    if not pattern or "\n" in pattern or "\r" in pattern:
        raise ValueError(
            f"{path} has {len(text.splitlines())} lines, but a pattern is a single line; write "
            r"line breaks in it as \n"
        )
    return pattern


def _check(what: str, pattern: str) -> None:
    """Raises: ValueError if it is no pattern, leaves text out, or is read in two ways."""
    check_can_learn_words()
    try:
        single_bytes = _encoding(pattern, {bytes([byte]): byte for byte in range(256)})
    except ValueError as error:
        raise ValueError(
            f"{what} is no regular expression of tiktoken: {_with_position(str(error), pattern)}; "
            "correct it there"
        ) from error
    for text in (_probe(), _characters()):
        if (left_out := _first_left_out(what, single_bytes, text)) is not None:
            raise ValueError(
                f"{what} leaves out {left_out!r} (U+{ord(left_out):04X}), which tiktoken would "
                r"drop; end it with |[\s\S] to take any other character as a word"
            )
    try:
        words = words_of(_probe(), pattern)
    except ValueError as error:
        raise ValueError(
            f"{what} cannot be used by Hugging Face's tokenizers, which learns the merges: "
            f"{error}; write it as both libraries read it"
        ) from error
    if (differs := first_difference(pattern, words)) is not None:
        raise ValueError(
            f"{what} splits {differs!r} differently in tiktoken and in Hugging Face's tokenizers; "
            "write it so that both read it alike (no + after {1,3}; (?m) decides ^ and $)"
        )


def _encoding(pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    return tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def _with_position(message: str, pattern: str) -> str:
    """tiktoken's message; where it names no position, that of Python's `regex`."""
    if "position" not in message:
        import regex  # only here: most starts need none

        try:
            regex.compile(pattern)
        except regex.error as error:
            return str(error)
    return message


def _first_left_out(what: str, encoding: tiktoken.Encoding, text: str) -> str | None:
    """The first character that no match of the pattern covers."""
    try:
        with silenced():
            found = encoding.decode(encoding.encode_ordinary(text))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except ValueError as error:
        raise ValueError(
            f"{what} takes too long on a text of {len(text)} characters ({error}); nest no "
            "repetitions"
        ) from error
    except BaseException as error:  # a panic in Rust code is a BaseException, not an Exception
        raise ValueError(
            f"{what} matches the empty text, which makes no progress; use + where it has *"
        ) from error
    if found == text:
        return None
    pairs = zip(found, text, strict=False)
    return next((b for a, b in pairs if a != b), text[min(len(found), len(text) - 1)])


def first_difference(pattern: str, words: list[str]) -> str | None:
    """A word, with its neighbours, where tiktoken splits the joined words in other places.

    It shows no words. So it gets a vocabulary of them, preceded by the pairs of bytes across their
    ends: a word that it has is one token, and across an end that it does not have a pair merges.
    """
    pieces = [word.encode() for word in words]
    singles = [bytes([byte]) for byte in range(256)]
    across = [before[-1:] + after[:1] for before, after in pairwise(pieces)]
    tokens = list(dict.fromkeys([*singles, *across, *pieces]))
    encoding = _encoding(pattern, {token: rank for rank, token in enumerate(tokens)})
    ids = encoding.encode_ordinary("".join(words))
    for at, piece in enumerate(pieces):
        if at >= len(ids) or tokens[ids[at]] != piece:
            return "".join(words[max(at - 1, 0) : at + 2])
    return None
