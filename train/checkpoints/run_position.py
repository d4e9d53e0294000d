"""Where a run is in training and data: the content of a checkpoint's state.json."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.atomic import read_json
from storage.checkpoint_folder import STATE_FILE, NewerFormat
from storage.json_lines import is_count
from storage.records.json_fields import check_fields
from train.guards.spikes import is_history

STATE_FORMAT = 5  # of state.json; load_position converts older ones
_STATE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "next_window": int,
    "seed": int,
    "data": (str, list),
    "data_fingerprint": str,
    "context_length": int,
    "val_tokens": int,
    "lines": list,
    "micro_batch": (int, type(None)),
    "windows": (int, type(None)),
    "guard": (dict, type(None)),
    "run_id": str,
    "mask_documents": (bool, type(None)),
    "mixture": (list, type(None)),
}


@dataclass(frozen=True)
class RunPosition:
    """Position of a run in training and data: the content of `state.json`."""

    step: int
    """Number of updates done."""
    next_window: int
    """Number of the first window of the training stream that no step has used."""
    seed: int
    data: str | list[str]
    """Data set folder, or those of a mixture, for tools that read only the checkpoint."""
    data_fingerprint: str
    context_length: int
    val_tokens: int
    """Number of tokens of each validation, for tools that evaluate only the checkpoint."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """The last metric lines, in case rank 0 died before it wrote them (since format 2)."""
    micro_batch: int | None = None
    """Micro-batch of the last steps; it affects rounding (since format 3)."""
    windows: int | None = None
    """Number of windows used so far: `next_window` minus skipped windows (since format 4)."""
    guard: dict[str, Any] | None = None
    """Recent loss and gradient norms, from which limits of spikes follow (since format 5)."""
    run_id: str = ""
    """Identity of the run, as in its config.json (since format 5)."""

    mask_documents: bool = False
    """Whether validation reads each document alone, as training did; in the file only if so."""
    mixture: list[dict[str, Any]] | None = None
    """The changes of a mixture's weights so far (in the file only if there are some)."""

    def as_json(self) -> dict[str, Any]:
        """The content of state.json."""
        content = {"format": STATE_FORMAT, **asdict(self)}
        for name in ("mixture", "mask_documents"):  # which older versions do not know
            if not content[name]:
                del content[name]
        return content

    @property
    def windows_taken(self) -> int:
        """`windows`; for a checkpoint of an older format, as if no window had been skipped."""
        return self.next_window if self.windows is None else self.windows


def load_position(checkpoint: Path) -> RunPosition:
    """The position of the run at this checkpoint; older formats are converted.

    Raises: ValueError if the format is newer than this version reads, or the file is damaged.
    """
    path = checkpoint / STATE_FILE
    found = read_json(path)
    version = found.pop("format", None) if isinstance(found, dict) else None
    if type(version) is not int or version not in range(1, STATE_FORMAT + 1):
        newer = type(version) is int and version > STATE_FORMAT
        raise (NewerFormat if newer else ValueError)(
            f"{path} is of format {version}, this version reads 1 to {STATE_FORMAT}; "
            + ("update Ratchet" if newer else "it is damaged, use another checkpoint")
        )
    found = {"lines": [], "run_id": ""} | found
    try:
        # Format 1 has no `lines`, 2 no `micro_batch`, 3 no `windows`, 4 no `guard` and no `run_id`:
        # they get their defaults.
        position = RunPosition(**check_fields(path, found, _STATE_FIELDS, "use another checkpoint"))
    except TypeError as error:
        raise ValueError(f"{path} is damaged ({error}); use another checkpoint") from error
    if not all(isinstance(line, dict) and is_count(line.get("step")) for line in position.lines):
        raise ValueError(f"{path} is damaged: a line has no step; use another checkpoint")
    if position.guard is not None and not is_history(position.guard):
        raise ValueError(f"{path} is damaged: guard is no history; use another checkpoint")
    return position


def check_same_data(checkpoint: Path, position: RunPosition, fingerprint: str) -> None:
    """Raises: ValueError if the run used other data than `fingerprint`."""
    if position.data_fingerprint == fingerprint:
        return
    data, same = position.data, "data set"
    if not isinstance(data, str):
        data = " ".join(data)
        same += (
            "s with the same weights in the same order (--data-weights-at changes weights from a "
            "later step on)"
        )
    raise ValueError(
        f"{checkpoint} was trained on data {position.data_fingerprint[:12]} ({data}), but --data "
        f"is {fingerprint[:12]}; give the same {same}, or start a new run with another --out"
    )
