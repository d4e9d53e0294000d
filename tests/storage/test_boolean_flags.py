"""Booleans on a command line: both old spellings mean the flags, and no other word changes."""

from dataclasses import dataclass, field
from typing import Annotated

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from storage.boolean_flags import with_flags


@dataclass(frozen=True)
class Base:
    lr: float = 1.0


@dataclass(frozen=True)
class Chosen(Base):
    fused: bool = True


@dataclass(frozen=True)
class Inner:
    some_flag: bool = False
    text: str = ""


@dataclass(frozen=True)
class Options:
    prompt: tuple[str, ...] = ()
    json: bool = False
    long_name: Annotated[bool, "a comment"] = True
    maybe: bool | None = None
    inner: Inner = field(default_factory=Inner)
    optimizer: Base = Chosen()


@dataclass(frozen=True)
class Required:
    must: bool
    other: bool = True


FLAGS = ["json", "long-name", "inner.some-flag", "optimizer.fused"]
NEGATED = ["no-json", "no-long-name", "inner.no-some-flag", "optimizer.no-fused"]


@pytest.mark.parametrize(
    ("given_words", "wanted"),
    [
        ("--json True", "--json"),
        ("--json true --long-name false", "--json --no-long-name"),
        ("--json=True --long-name=False", "--json --no-long-name"),
        ("--long_name False", "--no-long-name"),
        ("--inner.some_flag=true", "--inner.some-flag"),
        ("--inner.some-flag False", "--inner.no-some-flag"),
        ("--optimizer.fused False", "--optimizer.no-fused"),
        ("--json --no-long-name x", "--json --no-long-name x"),
        ("--json 1 --long-name=yes --json=", "--json 1 --long-name=yes --json="),
        ("--prompt True --json", "--prompt True --json"),
        ("--prompt a True --json False", "--prompt a True --no-json"),
        ("--inner.text=True --inner.text False", "--inner.text=True --inner.text False"),
        ("--maybe True", "--maybe True"),
        ("--some-flag True", "--some-flag True"),
        ("--unknown_option True", "--unknown_option True"),
        ("-- --json True", "-- --json True"),
        ("True --json", "True --json"),
        ("", ""),
    ],
)
def test_a_boolean_with_a_value_becomes_a_flag(given_words, wanted):
    assert with_flags(Options, given_words.split()) == wanted.split()


def test_without_prefixes_the_names_are_those_of_the_fields():
    words = ["--some-flag", "True", "--inner.some-flag", "True"]
    assert with_flags(Options, words, prefixed=False) == ["--some-flag", *words[2:]]


def test_the_class_of_a_default_decides_on_its_options():
    words = ["--optimizer.fused", "False"]
    assert with_flags(Options(optimizer=Base()), words) == words
    assert with_flags(Options(), words) == ["--optimizer.no-fused"]


def test_a_boolean_without_a_default_keeps_its_value():
    words = ["--must", "False", "--other", "False"]
    assert with_flags(Required, words) == ["--must", "False", "--no-other"]
    assert tyro.cli(Required, args=with_flags(Required, words)) == Required(must=False, other=False)


@given(st.dictionaries(st.integers(0, 3), st.booleans()), st.booleans())
def test_every_spelling_gives_the_same_options(values, underscores):
    spellings = {"flag": [], "word": ["--prompt", "True"], "equals": []}
    for n, value in values.items():
        name = FLAGS[n].replace("-", "_") if underscores else FLAGS[n]
        spellings["flag"].append(f"--{FLAGS[n] if value else NEGATED[n]}")
        spellings["word"] += [f"--{name}", str(value)]
        spellings["equals"].append(f"--{name}={str(value).lower()}")
    spellings["flag"] += ["--prompt", "True"]
    spellings["equals"] += ["--prompt=True"]
    parsed = [tyro.cli(Options, args=with_flags(Options, w)) for w in spellings.values()]
    assert parsed[0] == parsed[1] == parsed[2]
    found = (parsed[0].json, parsed[0].long_name, parsed[0].inner.some_flag)
    assert found == tuple(values.get(n, n == 1) for n in range(3))
    assert parsed[0].prompt == ("True",)
