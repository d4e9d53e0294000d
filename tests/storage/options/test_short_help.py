"""The first page of a help, from the marks and texts beside the fields."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from storage.options.short_help import field_texts, short_help
from storage.options.usual import Usual
from storage.script_options import parse_options


@dataclass(frozen=True)
class Inner:
    """A group."""

    rate: Usual[float] = 0.5
    """Rate of it. It has
    more to say."""
    hidden: int = 3
    """Not usual."""


@dataclass(frozen=True)
class Options:
    """Options of a script."""

    source: Usual[tuple[str, ...]] = ()
    """Files."""
    out: Usual[Path | None] = None
    """Folder."""
    kind: Usual[Literal["a", "b"]] = "a"
    """Kind."""
    inner: Inner = Inner()


def test_only_marked_options_are_shown_each_with_its_first_sentence():
    text = short_help(Options(inner=Inner(rate=0.25)), "x.py", "Does it.")
    options = text.partition("usual options (in brackets: its defaults):\n")[2]
    assert options.splitlines()[:4] == [
        "  --source TEXT ...  Files.",
        "  --out PATH         Folder.",
        "  --kind a|b         Kind. (a)",
        "  --inner.rate X     Rate of it. (0.25)",
    ]
    assert text.startswith("usage: x.py\n\nDoes it.\n\n")


def test_a_script_with_marked_options_has_two_pages(capsys, monkeypatch):
    pages = []
    for word in ("--help", "--help-all"):
        monkeypatch.setattr(sys, "argv", ["x.py", word])
        with pytest.raises(SystemExit) as ended:
            parse_options(Options, description="Does it.")
        assert ended.value.code == 0
        pages.append(capsys.readouterr().out)
    assert ["--inner.hidden" in page for page in pages] == [False, True]


def test_an_introduction_is_as_wide_as_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    with pytest.raises(SystemExit):
        text = "many words " * 20 + "\n\n    x.py --a\n"
        parse_options(Inner, ["--help-all"], prog="x.py", description=text)
    found = capsys.readouterr().out.splitlines()
    assert max(map(len, found)) <= 50
    assert "    x.py --a" in found


def test_the_texts_of_fields_are_those_of_the_source():
    assert field_texts(Inner) == {"rate": "Rate of it. It has more to say.", "hidden": "Not usual."}
    assert field_texts(int) == {}
