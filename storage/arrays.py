"""Arrays as .npy files, written so that a full disk is an error."""

from io import BytesIO
from pathlib import Path

import numpy as np


def save_array(path: Path, array: np.ndarray) -> None:
    """What `np.save` writes, by way of memory: straight to a file it overlooks a failing close.

    Raises: OSError with the disk's errno.
    """
    content = BytesIO()
    np.save(content, array, allow_pickle=False)
    with path.open("wb") as file:
        file.write(content.getbuffer())
