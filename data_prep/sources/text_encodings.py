"""Recognises text that is not UTF-8, to name it with the right cure and never misread it."""

import codecs
import re
from contextlib import suppress
from pathlib import Path

from data_prep.sources.byte_streams import Content, TruncatedFile, compression_of

_HEAD_BYTES = 1 << 20
_CONTEXT_BYTES = 1000  # around a byte that is not UTF-8, to guess the encoding
# Programs of Windows put one at the start of a UTF-8 file.
BYTE_ORDER_MARK = codecs.BOM_UTF8
# Longest first: UTF-16's mark begins that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
# How files begin that are no text, and what to do about each.
_RENAME = "add {0} to its name"
_OTHER_CONTENT = (
    (b"\x1f\x8b", "compressed with gzip", _RENAME.format(".gz")),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _RENAME.format(".zst")),
    (b"\xfd7zXZ\0", "compressed with xz", _RENAME.format(".xz")),
    (b"BZh", "compressed with bzip2", _RENAME.format(".bz2")),
    (b"PK\x03\x04", "a zip archive", "unpack it, and give its files"),
    (b"%PDF-", "a PDF", "save its text as .txt"),
    (b"PAR1", "a parquet file", "let its name end in .parquet"),
)
_LFS_POINTER = b"version https://git-lfs"
_NULS_OF_UTF16 = 0.05  # of the bytes at even, or at odd, places: spaces and ends of lines alone
_NULS_OF_UTF32 = 0.9  # of every fourth byte: the upper byte of all characters
_LONE_HIGH_BYTE = re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
_WINDOWS_BYTE = re.compile(rb"[\x80-\x9f]")  # letters and quotes there, in latin1 none
_HIGH_BYTE = re.compile(rb"[\x80-\xff]")


def read_head(path: Path) -> bytes:
    """The first megabyte of a file, decompressed, or what there is of it."""
    head = bytearray()
    with suppress(TruncatedFile), Content(path).open() as stream:
        while len(head) < _HEAD_BYTES and (more := stream.read(_HEAD_BYTES - len(head))):
            head += more
    return bytes(head)


def check_encoding(path: Path, head: bytes) -> None:
    """Raises: ValueError with the cure if the file that begins with `head` is not text in UTF-8."""
    check_no_pointer(path, head)
    for start, kind, cure in _OTHER_CONTENT:
        if head.startswith(start):
            raise ValueError(f"{path} holds no text but is {kind}; {cure}")
    encoding = _wide_encoding(head)
    if encoding:
        raise ValueError(
            f"{path} is in {encoding}, not UTF-8; convert it first: {_iconv(encoding, path)}"
        )


def check_no_pointer(path: Path, head: bytes) -> None:
    """Raises: ValueError with the cure if a file stands for one that Git LFS has not fetched."""
    if head.startswith(_LFS_POINTER):
        raise ValueError(f"{path} is a pointer of Git LFS; fetch the file with `git lfs pull`")


def _iconv(encoding: str, path: Path) -> str:
    """A command that converts a file. The new name keeps the format's suffix."""
    packed = compression_of(path.name)
    plain = path.name[: len(path.name) - len(packed)]
    unpack = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}.get(packed)
    if unpack:
        return f"`{unpack} -dc {path.name} | iconv -f {encoding} -t UTF-8 > utf8_{plain}`"
    return f"`iconv -f {encoding} -t UTF-8 {path.name} > utf8_{plain}`"


def _wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 by mark, or with its byte order by the places of NULs; "" if neither."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if b"\0" not in head[:4096]:
        return ""
    head = head[: len(head) // 4 * 4 or len(head)]
    quarters = [_share_of_nuls(head[first::4]) for first in range(4)]
    if quarters[3] > _NULS_OF_UTF32 and quarters[2] > _NULS_OF_UTF32:
        return "UTF-32LE"
    if quarters[0] > _NULS_OF_UTF32 and quarters[1] > _NULS_OF_UTF32:
        return "UTF-32BE"
    even, odd = _share_of_nuls(head[0::2]), _share_of_nuls(head[1::2])
    if odd > _NULS_OF_UTF16 and even < odd / 10:
        return "UTF-16LE"
    if even > _NULS_OF_UTF16 and odd < even / 10:
        return "UTF-16BE"
    return ""


def _share_of_nuls(data: bytes) -> float:
    return data.count(0) / max(1, len(data))


def not_utf8(text: bytes, at: int, path: Path) -> str:
    """What is wrong with a text that is not UTF-8 from byte `at` on, and the cure that may help."""
    text = text[max(0, at - _CONTEXT_BYTES) : at + _CONTEXT_BYTES]
    high = len(_HIGH_BYTE.findall(text))
    lone = len(_LONE_HIGH_BYTE.findall(text))
    if high == lone and high < len(text) / 4:  # single accented letters between others
        encoding = "WINDOWS-1252" if _WINDOWS_BYTE.search(text) else "latin1"
        cure = f"convert the file first: {_iconv(encoding, path)}"
        return f"it is not UTF-8, perhaps {encoding}; {cure}"
    return (
        "it is not UTF-8; repair it, or convert the file first if it is in another encoding: "
        f"{_iconv('ENCODING', path)}"
    )
