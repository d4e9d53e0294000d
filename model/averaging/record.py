"""The record of what an average was made of, in a file beside its weights."""

from pathlib import Path
from typing import Any

from storage.atomic import read_json

AVERAGE_FILE = "average.json"


def average_record(checkpoint: Path) -> dict[str, Any]:
    """The record; empty if the checkpoint is no average.

    It has `data`, `data_fingerprint`, `val_tokens` and `mask_documents` as a run's state.json has
    them.
    Raises: ValueError if it is damaged.
    """
    path = checkpoint / AVERAGE_FILE
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no record of an average; it is damaged, average again")
    return found
