"""Files of tokens that other programs have made, such as build-nanogpt, llm.c and nanoGPT.

`.npy`: one dimension of whole numbers (build-nanogpt). `.bin` with the header of llm.c: 256 int32,
of which the first three are its magic number, its version and the number of tokens (llm.c,
modded-nanogpt). `.bin` without it: ids and nothing else, of two bytes, or of four where the
vocabulary needs them (nanoGPT).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOKEN_KINDS = ".npy (one dimension of whole numbers) and .bin (llm.c's, or bare ids)"
_AGAIN = "copy or download it again"
_HEADER_BYTES = 256 * 4
# Magic number and version of https://github.com/karpathy/llm.c/blob/master/dev/data/data_common.py
_HEADERS = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}


def is_token_file(name: str) -> bool:
    """Whether a file of this name may hold tokens."""
    return name.lower().endswith((".npy", ".bin"))


@dataclass(frozen=True)
class TokenArray:
    """The tokens of one file, which is not read before `read` is called."""

    path: Path
    kind: str
    """For a person: npy, llm.c or nanoGPT."""
    dtype: np.dtype
    offset: int
    """Bytes before the first token."""
    tokens: int

    def read(self, start: int, count: int) -> np.ndarray:
        """Up to `count` tokens from `start` on, in the file's type.

        Raises: OSError if the file has become shorter.
        """
        count = min(count, self.tokens - start)
        with self.path.open("rb") as file:
            file.seek(self.offset + start * self.dtype.itemsize)
            found = np.fromfile(file, self.dtype, count)
        if len(found) < count:
            raise OSError(f"{self.path} has become shorter; {_AGAIN}")
        return found


def open_token_file(path: Path, bare: np.dtype) -> TokenArray:
    """The tokens of a file, by its header; without one they are `bare`.

    Raises: ValueError if it holds none, is of another kind, or is not of the size its header says.
    """
    found = _open_npy(path) if path.suffix.lower() == ".npy" else _open_bin(path, bare)
    expected = found.offset + found.tokens * found.dtype.itemsize
    if path.stat().st_size != expected:
        raise ValueError(
            f"{path} is {path.stat().st_size} bytes, but {found.tokens} tokens of {found.dtype} "
            f"need {expected}; {_AGAIN}"
        )
    if found.tokens == 0:
        raise ValueError(f"{path} holds no token; leave it out, or {_AGAIN}")
    return found


def _open_npy(path: Path) -> TokenArray:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(file)  # nothing is unpickled
            offset = file.tell()
    except Exception as error:  # NumPy parses the header as Python, which can fail in any way
        raise ValueError(f"{path} is not a readable .npy file ({error}); {_AGAIN}") from error
    if len(shape) != 1 or dtype.kind not in "iu":
        raise ValueError(
            f"{path} holds {dtype} of shape {shape}, but tokens are one dimension of whole "
            "numbers; save the ids alone"
        )
    return TokenArray(path, "npy", dtype, offset, shape[0])


def _open_bin(path: Path, bare: np.dtype) -> TokenArray:
    with path.open("rb") as file:
        head = np.frombuffer(file.read(_HEADER_BYTES), "<i4", count=-1) if _is_long(path) else []
    key = (int(head[0]), int(head[1])) if len(head) else (0, 0)
    if key in _HEADERS:
        return TokenArray(path, "llm.c", _HEADERS[key], _HEADER_BYTES, int(head[2]))
    if key[0] in {magic for magic, _ in _HEADERS}:
        versions = ", ".join(str(version) for magic, version in _HEADERS if magic == key[0])
        raise ValueError(
            f"{path} has llm.c's header of version {key[1]}, and version {versions} can be read; "
            "make it again with llm.c's scripts of today"
        )
    size = path.stat().st_size
    if size % bare.itemsize:
        raise ValueError(f"{path} is {size} bytes, which {bare} tokens cannot fill; {_AGAIN}")
    return TokenArray(path, "nanoGPT", bare, 0, size // bare.itemsize)


def _is_long(path: Path) -> bool:
    return path.stat().st_size >= _HEADER_BYTES
