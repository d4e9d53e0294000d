"""The command line of a script: what its values may be, and one sentence for each mistake."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tyro

from model.config import GPTConfig
from storage.script_options import parse_known_options, parse_options
from train.config import Config


@dataclass(frozen=True)
class _Inner:
    size: int = 3
    """A size."""

    def __post_init__(self):
        if self.size == 5:
            raise ValueError("inner.size=5 is odd, and this takes more than one line; use 4")


@dataclass(frozen=True)
class _Options:
    place: tyro.conf.Positional[Path]
    """Where."""
    count: int
    """How many times."""
    inner: _Inner = field(default_factory=_Inner)
    """Inside."""
    steps: int | None = None
    """Steps."""
    out: Path | None = None
    """Output."""
    files: tuple[Path, ...] = ()
    """Files."""
    batch: int | Literal["auto"] = "auto"
    """Batch."""
    kind: Literal["a", "b"] = "a"
    """Kind."""
    rate: float = 1.0
    """Rate."""
    quick: bool = False
    """Quick."""


GOOD = ["here", "--count", "2"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "PATH is not given: Where; --count is not given: How many times"),
        (["here", "--count", "x"], "--count x is not a whole number; give one"),
        (["here", "--count"], "--count has no value; give one"),
        ([*GOOD, "--steps", "many"], "--steps many is not None or a whole number; give one"),
        ([*GOOD, "--steps=many"], "--steps many is not None or a whole number; give one"),
        ([*GOOD, "--batch", "many"], "--batch many is not a whole number or auto; give one"),
        ([*GOOD, "--kind", "c"], "--kind c is not known; give one of a, b"),
        ([*GOOD, "--rate", ""], "--rate '' is not a number; give one"),
        ([*GOOD, "--rate", "nan"], "--rate nan is not finite; give a number"),
        (
            [*GOOD, "--steps", f"{2**64}"],
            f"does not fit in 64 bits; give at most {2**64 - 1}",
        ),
        ([*GOOD, "--out", ""], "--out '' is empty; give a path (. is the present folder)"),
        (
            [*GOOD, "--out", "~no_user/x"],
            "home folder of ~no_user, who is no user here; write",
        ),
        ([*GOOD, "--out", "x" * 256], "has a name of 256 bytes, but file systems take at most 255"),
        ([*GOOD, "--out", "x/" * 2100], "is no path; give one of at most 4095 bytes"),
        (
            [*GOOD, "--out", "\udcff"],
            "error: \\xff is not UTF-8; rename the file, or",
        ),
        ([*GOOD, "--files", "a", ""], "--files '' is empty"),
        (["", "--count", "2"], "PATH '' is empty"),
        ([*GOOD, "--inner.size", "5"], "is odd, and this takes more than one line; use 4"),
        ([*GOOD, "--innersize", "5"], "no option --innersize, 5; perhaps you meant --inner.size"),
        ([*GOOD, "more"], "there is no option more; --help-all lists all"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(words, sentence, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")  # however narrow the terminal is
    with pytest.raises(SystemExit) as ended:
        parse_options(_Options, words)
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n"), said[:7]) == (2, 1, "error: ")
    assert sentence in said


def test_a_long_value_and_control_characters_are_not_printed_whole(capsys):
    for value in ("9" * 5000, "\x1b[31m" + "x" * 400):
        with pytest.raises(SystemExit):
            parse_options(_Options, [*GOOD, "--steps", value])
        said = capsys.readouterr().err
        assert (len(said) < 300, "\x1b" in said, "--steps" in said) == (True, False, True)


def test_the_home_folder_is_put_in_place_of_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/a/home")
    found = parse_options(_Options, ["~", "--count=2", "--out=~/x", "--files", "~/a", "b/~"])
    assert (found.place, found.out) == (Path("/a/home"), Path("/a/home/x"))
    assert found.files == (Path("/a/home/a"), Path("b/~"))


def test_a_cure_names_the_flag_of_the_script_in_hand(capsys):
    for options, prefixed, flag in (
        (Config(), True, "--model.n-embd"),
        (GPTConfig(), True, "--n-embd"),
    ):
        with pytest.raises(SystemExit):
            parse_options(
                options, [f"{flag}=130", flag.replace("embd", "head") + "=4"], prefixed=prefixed
            )
        assert f"is not a multiple of n_head=4; try {flag} 128" in capsys.readouterr().err


def test_words_of_others_are_returned():
    @dataclass(frozen=True)
    class One:
        count: int = 1
        """Count."""

    found, rest = parse_known_options(One, ["--x", "--count", "2", "y"], prog="x")
    assert (found, rest) == (One(2), ["--x", "y"])


def test_the_help_is_printed_whole_and_ends_with_code_0(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_options(_Options, ["--help"])
    assert (ended.value.code, "How many times." in capsys.readouterr().out) == (0, True)
