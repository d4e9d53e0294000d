"""Ways to damage a file, and scripts called in this process to see what they make of it."""

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

DEEP = 100_000
_MOST_KEYS = 40  # of one object: a vocabulary has thousands
WRONG = (None, -1, "3", 1.5, [], {}, True, 10**400, [[]], "\ud800", 1e308, "../x")


@dataclass(frozen=True)
class Damage:
    """A way to damage a file, with a name for messages."""

    name: str
    do: Callable[[Path], None]


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Damage:
    def do(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return Damage(name, do)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([(content or b"\0")[middle] ^ 0xFF]) + content[middle + 1 :]


ANY_FILE = [
    _bytes("cut in half", lambda content: content[: len(content) // 2]),
    _bytes("empty", lambda _: b""),
    _bytes("one byte flipped", _flipped),
    _bytes("another encoding", lambda content: b"\xff\xfe" + content),
    _bytes("zeros at the end", lambda content: content[: len(content) // 2] + bytes(5000)),
    Damage("missing", Path.unlink),
    Damage("a folder", _folder),
]
JSON_FILE = ANY_FILE + [
    _bytes(name, lambda _, content=content: content)
    for name, content in {
        "a number": b"3",
        "null": b"null",
        "a list": b"[]",
        "a text": b'"x"',
        "an empty object": b"{}",
        "nested deeply": b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        "nested": b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
        "infinite": b"1e400",
    }.items()
]


def _places(value: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    """The paths to the fields of a JSON value; of a list only to its first entry."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, inner in islice(pairs, _MOST_KEYS):
        yield (key,)
        if depth > 1 and isinstance(inner, dict | list):
            yield from ((key, *rest) for rest in _places(inner, depth - 1))


def wrong_fields(path: Path, depth: int = 4, each: int = 2) -> list[Damage]:
    """Each field of a JSON file missing, and of some wrong types in turn."""
    found = []
    places = list(_places(json.loads(path.read_text()), depth))
    for number, place in enumerate(places):
        for i in range(each):
            wrong = WRONG[(number * each + i) % len(WRONG)]
            found.append(Damage(f"{place} is {str(wrong)[:20]!r}", _put(place, wrong)))
        found.append(Damage(f"{place} is missing", _put(place, _put)))
    return found


def _put(place: tuple[Any, ...], wrong: Any) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        content = json.loads(path.read_text())
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        if wrong is _put:
            del inner[place[-1]]
        else:
            inner[place[-1]] = wrong
        path.write_text(json.dumps(content))

    return do


def lines_damaged(value: dict[str, Any]) -> list[Damage]:
    """Lines of wrong types in the middle of a file of JSON lines."""
    bad = ["", "3", "null", "[]", '{"step"', "{}", "\0" * 5000, "[" * DEEP, '"\ud800"', "1e400"]
    bad += [json.dumps(value | {key: wrong}) for key in value for wrong in WRONG]

    def insert(line: str) -> Callable[[Path], None]:
        def do(path: Path) -> None:
            lines = path.read_bytes().splitlines(keepends=True)
            lines.insert(1, line.encode("utf-8", "surrogatepass") + b"\n")
            path.write_bytes(b"".join(lines))

        return do

    return [Damage(f"line {line[:60]!r}", insert(line)) for line in bad]


@dataclass(frozen=True)
class Ended:
    """How a script ended: its exit code, what it printed, and an error that nothing caught."""

    code: int
    out: str
    err: str
    uncaught: str = ""


def call(main: Callable[[], None], words: Sequence[str], folder: Path) -> Ended:
    """Call the `main` of a script in this process as if it was started in `folder`."""
    out, err, uncaught, code = io.StringIO(), io.StringIO(), "", 0
    handlers = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGHUP)}
    before, argv, root = Path.cwd(), sys.argv, logging.getLogger()
    kept, root.handlers = root.handlers, []
    os.chdir(folder)
    sys.argv = ["script.py", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException as error:
        uncaught = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        os.chdir(before)
        sys.argv, root.handlers = argv, kept
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Ended(code, out.getvalue(), err.getvalue(), uncaught)


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def copy_of(world: Path, folder: Path) -> Path:
    """A copy of a folder, in which links are links."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world, folder, symlinks=True)
    return folder
