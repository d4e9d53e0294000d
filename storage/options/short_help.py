"""The first page of a script's help: its usual options, on one screen.

`parse_options` prints it for `--help` if some options are marked, and all for `--help-all`.
"""

import ast
import inspect
import io
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import MISSING
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from storage.options.usual import UsualOption, usual_options

HELP_FLAGS = ("--help", "-h")
HELP_ALL = "--help-all"
_WIDEST = 110  # longer lines are hard to read
_NARROWEST = 40
_COLUMN = 28  # where explanations begin, at most
_LONGEST_DEFAULT = 40


def is_asked_for(words: Sequence[str]) -> bool:
    """Whether the words of a command line ask for the first page of the help."""
    return any(word in HELP_FLAGS for word in words) and HELP_ALL not in words


def short_help(
    options: Any,
    usage: str,
    description: str,
    lists: Iterable[tuple[str, Sequence[tuple[str, str]]]] = (),
    more: Sequence[tuple[str, str]] = (),
    prefixed: bool = True,
    defaults: str = "its defaults",
) -> str:
    """The first page of the help of `options`, as wide as the terminal.

    `lists` have a title and rows of a name and its explanation; `more` are options that are not
    fields. `defaults` says whose the values in brackets are; if it is empty, none are shown.
    """
    width = _width()
    rows = [*more, *_option_rows(options, prefixed, bool(defaults))]
    title = f"usual options (in brackets: {defaults})" if defaults else "usual options"
    parts = [f"usage: {usage}", *_paragraphs(description, width)]
    for heading, entries in [*lists, (title, rows)]:
        head = _wrapped(f"{heading}:", width)
        parts.append("\n".join([*head, *_table(entries, width)]))
    parts.append(f"{HELP_ALL} explains all options.")
    return "\n\n".join(parts) + "\n"


@contextmanager
def wrapped_introduction(words: Sequence[str]) -> Iterator[None]:
    """Wrap the lines of a help that are wider than the terminal: tyro wraps only those in boxes."""
    if not set(words) & {*HELP_FLAGS, HELP_ALL}:
        yield
        return
    printed = _Captured()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        width = _width()
        for line in printed.getvalue().splitlines():
            as_is = line[:1] in " ╭│╰\x1b"  # a command, or in a box
            wrapped = [line] if as_is else _wrapped(line, width)
            sys.stdout.write("\n".join(wrapped or [""]) + "\n")


class _Captured(io.StringIO):
    """Text that is printed later: in boxes and in colour if standard output can show them."""

    def __init__(self) -> None:
        super().__init__()
        self._target = sys.stdout

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        """That of standard output."""
        return self._target.encoding

    def isatty(self) -> bool:
        """Whether the text will be printed on a terminal."""
        return self._target.isatty()


def _width() -> int:
    return max(min(shutil.get_terminal_size().columns, _WIDEST), _NARROWEST)


def _paragraphs(text: str, width: int) -> list[str]:
    """The paragraphs of a text, wrapped; lines that are indented, such as commands, stay as is."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return [
        part if part.startswith(" ") else "\n".join(_wrapped(" ".join(part.split()), width))
        for part in paragraphs
    ]


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text; names and addresses are not broken."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _table(rows: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Rows of a name and its explanation, in two columns."""
    longest = max((len(name) for name, _ in rows if len(name) + 4 <= _COLUMN), default=0)
    column = min(longest + 4, width // 2)
    for name, text in rows:
        wrapped = _wrapped(text, width - column) or [""]
        if len(name) + 4 > column:
            yield f"  {name}"
            yield from (f"{'':{column}}{line}" for line in wrapped)
        else:
            yield f"  {name:{column - 2}}{wrapped[0]}".rstrip()
            yield from (f"{'':{column}}{line}" for line in wrapped[1:])


def _option_rows(options: Any, prefixed: bool, shown: bool) -> Iterator[tuple[str, str]]:
    """Every usual option as typed, and its explanation with the default."""
    for option in usual_options(options, prefixed):
        metavar = _metavar(option.kind)
        yield f"{option.flag} {metavar}".rstrip(), _explanation(option, shown)


def _metavar(kind: Any) -> str:
    """What the value of an option is called; empty for one that has none."""
    if get_origin(kind) in (Union, UnionType):
        return "|".join(_metavar(part) for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{_metavar(get_args(kind)[0])} ..."
    return {Path: "PATH", int: "N", float: "X", str: "TEXT", bool: ""}.get(kind, "VALUE")


def _explanation(option: UsualOption, shown: bool) -> str:
    """The first sentence of the text under the field, and the default."""
    text = field_texts(option.owner).get(option.field, "")
    text = text.partition(". ")[0].removesuffix(".") + "."
    default = _shown(option.default)
    return f"{text} ({default})" if shown and default else text


def _shown(default: Any) -> str:
    """A default as the help shows it; empty if it says nothing."""
    if default is MISSING:
        return "required"
    if isinstance(default, tuple):
        default = " ".join(repr(x) if " " in str(x) or not x else str(x) for x in default)
    text = "" if default is None else str(default)
    return text if len(text) <= _LONGEST_DEFAULT else f"{text[: _LONGEST_DEFAULT - 3]}..."


@cache
def field_texts(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass, by the field's name."""
    texts: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        except (OSError, TypeError, SyntaxError):  # such as `object`, or a class made in memory
            continue
        nodes = getattr(body, "body", [])
        for field, text in pairwise(nodes):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(found))),
                ):
                    texts[name] = " ".join(found.split())
    return texts
