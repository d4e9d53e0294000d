"""Characters that two encoders classify differently are found, whatever the ranks are."""

import sys
import unicodedata

import pytest

from data_prep.preparation.encoder import Gigatoken, fast_encoder
from data_prep.preparation.letter_classes import (
    ASCII,
    CharacterFinder,
    class_probe,
    differing,
    differing_outside_ascii,
)
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from storage.byte_pairs import PATTERNS


def probe_with_pattern(pattern: str):
    probe = class_probe()
    return Tokenizer("other", pattern, probe.ranks).encode_to_numpy


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ((r"\p{L}", r"[\p{L}\u0378]"), [0x378]),  # not assigned: a letter for one of them
        ((r"\p{N}", r"[\p{N}\u20a0]"), [0x20A0]),
        ((r"\s\p{L}\p{N}", r"\s\p{L}\p{N}\u0301"), [0x301]),
        (("x", "x"), []),
    ],
)
def test_a_character_of_another_class_is_found_wherever_it_is(change, expected):
    probe = class_probe()
    other = probe_with_pattern(probe.pattern.replace(*change))
    assert differing(probe.encode_to_numpy, other, range(0x80, 0x3000)) == expected


def test_a_finder_finds_its_characters_and_no_others():
    chosen = [0x88F, 0xA7CE, 0xA7CF, 0x10940, 0x2B73A, 0xE9, 0x5D, 0x5C]
    finder = CharacterFinder(chosen)
    others = [code for code in range(0x80, 0x40000, 7) if not 0xD800 <= code < 0xE000]
    for code in {*others, *chosen, 0x40000, 0x10FFFF}:
        expected = (code in chosen and code > 0x7F) or code >= 0x40000
        assert finder.is_in(f"a{chr(code)}b".encode()) == expected, hex(code)
    assert not CharacterFinder([]).is_in("é世".encode())


@pytest.mark.skipif(fast_encoder(gpt2_tokenizer()) is None, reason="gigatoken is not installed")
@pytest.mark.parametrize("name", ["gpt2", "gpt4", "qwen2"])
def test_gigatoken_and_tiktoken_differ_only_in_what_unicode_has_changed_lately(name):
    probe = class_probe(PATTERNS[name])
    fast = Gigatoken(probe)

    def encode(text):
        return fast.encode(text.encode())

    assert differing(probe.encode_to_numpy, encode, ASCII) == []
    found = differing_outside_ascii(probe.encode_to_numpy, encode)
    assert len(found) < 20_000
    if sys.version_info < (3, 13):  # its Unicode is 15.0 or older
        assert {unicodedata.category(chr(code)) for code in found} <= {"Cn"}
