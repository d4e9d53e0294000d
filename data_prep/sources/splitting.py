"""Splits the bytes of a file at separators, without having it all in memory."""

import re
from collections.abc import Iterator

from data_prep.sources.byte_streams import Content, TruncatedFile, became_shorter

_CHUNK_BYTES = 1 << 20


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def typed_separator(words: str) -> str:
    """A separator as it is typed in a shell. Raises: ValueError as `typed_text` does."""
    return typed_text("separator", words)


def typed_text(option: str, words: str) -> str:
    """A text as it is typed in a shell: \\n, \\t, \\r and \\\\ stand for what they mean in C.

    Raises: ValueError for a backslash before anything else.
    """

    def meaning(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise ValueError(
                f"{option}={words} has {found[0]}, which has no meaning; "
                r"known are \n, \t, \r, and \\ for a backslash"
            )
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.?)", meaning, words, flags=re.DOTALL)


class Separator:
    """What divides the bytes of a file."""

    def __init__(self, content: bytes, any_newline: bool = False) -> None:
        """With `any_newline`, each newline of `content` may be one of Windows in the file."""
        if not content:
            raise ValueError("separator is empty; give the text between documents")
        self._content = content
        self._pattern: re.Pattern[bytes] | None = None
        self.longest = len(content)
        if any_newline and b"\n" in content:
            lines = content.replace(b"\r\n", b"\n").split(b"\n")
            self._pattern = re.compile(b"\r?\n".join(map(re.escape, lines)))
            self.longest = sum(map(len, lines)) + 2 * (len(lines) - 1)

    def find(self, buffer: bytearray, start: int) -> tuple[int, int]:
        """Where the first separator from `start` on begins and ends; (-1, -1) if there is none."""
        if self._pattern is None:
            at = buffer.find(self._content, start)
            return at, at + len(self._content) if at >= 0 else -1
        found = self._pattern.search(buffer, start)
        return found.span() if found else (-1, -1)


def split_content(
    content: Content, separator: Separator, start: int = 0, stop: int | None = None
) -> Iterator[tuple[bytes, int]]:
    """The parts of bytes [start, stop), and the length of the separator behind each, 0 at the end.

    Raises: TruncatedFile behind the last part that is complete.
    """
    buffer = bytearray()
    searched = 0  # bytes of the buffer where no separator begins; a chunk may end inside one
    left = None if stop is None else stop - start
    with content.open(start) as stream:
        while left is None or left:
            try:
                chunk = stream.read(_CHUNK_BYTES if left is None else min(_CHUNK_BYTES, left))
            except TruncatedFile as error:
                error.rest = len(buffer)
                raise
            if not chunk:
                break
            left = None if left is None else left - len(chunk)
            buffer += chunk
            while (found := separator.find(buffer, searched))[0] >= 0:
                at, end = found
                yield bytes(buffer[:at]), end - at
                del buffer[:end]
                searched = 0
            searched = max(0, len(buffer) - separator.longest + 1)
    if left:
        raise became_shorter(content.path)
    yield bytes(buffer), 0
