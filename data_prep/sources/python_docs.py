"""The documentation inside every Python as a source: help topics and docstrings.

There is one document for each `help()` topic and one for each module of the standard library.
Modules are parsed, never imported.
"""

import ast
import hashlib
import inspect
import json
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from data_prep.dataset.manifest import SourceEntry, SourceFile
from data_prep.sources.file_source import Unit
from data_prep.sources.pieces import Piece
from data_prep.sources.records import Document
from data_prep.tokenizer import utf8

# Folders of tests, tools and tables: they have no prose, or are not part of Python.
_SKIPPED_FOLDERS = {
    "__pycache__",
    "__phello__",
    "ensurepip",
    "idlelib",
    "lib-dynload",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "turtledemo",
}
_BLANK_LINES = re.compile(r"\n\s*\n")
_RULED_LINE = re.compile(r"(?:^|(?<=\s))([*=~^\-])\1{3,}(?=\s|$)")
_MIN_CHARACTERS = 100  # a shorter document is a name and half a sentence

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def _python_documents() -> tuple[str, ...]:
    """All documents: the topics by name, then the modules by name."""
    texts = [f"{name}\n\n{inspect.cleandoc(text)}\n" for name, text in sorted(topics.items())]
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).parts):
        parts = path.relative_to(library).parts
        # config-VERSION-PLATFORM holds scripts of Python's build, which differ between machines.
        if _SKIPPED_FOLDERS.isdisjoint(parts) and not parts[0].startswith("config-"):
            texts.append(_module_documentation(path, parts))
    prose = map(_unwrap, texts)
    return tuple(text for text in prose if len(text) >= _MIN_CHARACTERS)


def _unwrap(text: str) -> str:
    """The text with each paragraph on one line, single spaces, and no ruled lines."""
    # The layout is made for a terminal. If it stayed, one token in twelve would be a single space.
    paragraphs = (" ".join(_RULED_LINE.sub(" ", part).split()) for part in _BLANK_LINES.split(text))
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _module_documentation(path: Path, parts: tuple[str, ...]) -> str:
    """The docstrings of a module and of all its classes and functions; "" if there are none."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ""
    docstrings = [*filter(None, [ast.get_docstring(tree)]), *_definitions(tree, "")]
    name = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
    return "\n\n".join([f"Module {name}", *docstrings]) + "\n" if docstrings else ""


def _definitions(parent: ast.AST, prefix: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, _Definition):
            docstring = ast.get_docstring(node)
            if docstring:
                yield f"{_signature(node, prefix)}\n\n{docstring}"
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{prefix}{node.name}.")


def _signature(node: _Definition, prefix: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {prefix}{node.name}({bases})" if bases else f"class {prefix}{node.name}"
    return f"{prefix}{node.name}({ast.unparse(node.args)})"


@dataclass(frozen=True)
class PythonDocsSource:
    """The documentation as a source with one virtual file, whose rows are the documents."""

    def identity(self) -> SourceEntry:
        """The Python version and the digest of all texts."""
        content = json.dumps(_python_documents()).encode()
        digest = hashlib.sha256(content).hexdigest()
        file = SourceFile("documentation.json", len(content), digest)
        return SourceEntry("python-documentation", platform.python_version(), (file,))

    def settings(self) -> dict[str, Any]:
        """None: there are no options."""
        return {}

    def pieces(self, number: int, piece_bytes: int) -> Iterator[Piece]:
        """Documents in order, joined until they have `piece_bytes`."""
        first = size = 0
        texts = _python_documents()
        for stop, text in enumerate(texts, start=1):
            size += len(text.encode())
            if size >= piece_bytes or stop == len(texts):
                yield Piece(first, stop, stop - first, size)
                first, size = stop, 0

    def texts(self) -> Iterator[bytes]:
        """All documents in order, as UTF-8."""
        return map(utf8, _python_documents())

    def is_readable(self, number: int) -> bool:
        """Always."""
        return True

    def documents(self, unit: Unit) -> Iterator[Document]:
        """The same as `records`: none is bad."""
        return self.records(unit)

    def records(self, unit: Unit) -> Iterator[Document]:
        """The documents of a unit, in order."""
        for span in unit.spans:
            for row in range(span.start, span.stop):
                yield Document(0, row, utf8(_python_documents()[row]))
