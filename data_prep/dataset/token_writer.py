"""Writes a .npy file of tokens batch by batch, without knowing how many there will be."""

from pathlib import Path

import numpy as np


class TokenWriter:
    """A file as `np.save` would write it. Until `close` its header says that it is empty."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.tokens = 0
        self._dtype = dtype
        self._file = path.open("w+b")
        self._write_header()

    def write(self, tokens: np.ndarray) -> None:
        """Append tokens."""
        self._file.write(tokens.astype(self._dtype, copy=False).data)
        self.tokens += len(tokens)

    def close(self) -> None:
        """Write the number of tokens into the header."""
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        # Both have the same length, since NumPy pads a header so that an axis can grow to 21 digits
        # (GROWTH_AXIS_MAX_DIGITS in numpy/lib/format.py).
        self._file.seek(0)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.tokens,)}
        np.lib.format.write_array_header_1_0(self._file, header)
