"""The data, read again while the run trains, and which steps may have read a damaged file."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from data_prep.dataset.recheck import Damage, Recheck
from data_prep.order.training_data import TrainingData
from data_prep.order.windows import WindowStream
from parallel.ranks import Ranks
from storage.json_lines import read_lines
from storage.run_folder import RunFolder

_SECONDS_BETWEEN_NOTES = 60.0


def data_recheck(
    data: TrainingData,
    stream: WindowStream,
    ranks: Ranks,
    hours: float,
    all_hashed: bool,
) -> "DataRecheck":
    """What reads the data again: one process of each machine reads the copy that its ranks read.

    `all_hashed`: all files were hashed for this start. `hours=0` reads nothing.
    """
    if ranks.local_rank > 0 or hours == 0:
        return DataRecheck()
    right_at = time.time() if all_hashed else 0.0
    pairs = zip(data.sources, stream.streams, strict=True)
    return DataRecheck([Recheck(s.data, own.shards, hours, right_at) for s, own in pairs])


class DataRecheck:
    """The reading threads of this rank, one for each data set, and when each step was reached."""

    def __init__(self, readers: Sequence[Recheck] = ()) -> None:
        self.readers = readers
        self._notes: list[tuple[float, int]] = []

    @property
    def damage(self) -> Damage | None:
        """A file in use that differs from the manifest, once it is found."""
        return next((reader.damage for reader in self.readers if reader.damage), None)

    def start(self) -> None:
        """Begin to read."""
        for reader in self.readers:
            reader.start()

    def close(self) -> None:
        """End the thread."""
        for reader in self.readers:
            reader.close()

    def note(self, step: int) -> None:
        """Remember, once a minute, when the run reached a step."""
        now = time.time()
        if not self._notes or now - self._notes[-1][0] >= _SECONDS_BETWEEN_NOTES:
            self._notes.append((now, step))

    def sentence(self, step: int, folder: RunFolder) -> str:
        """What a person should know of the damage, found before `step`; empty without damage."""
        damage = self.damage
        if damage is None:
            return ""
        first = self._step_at(damage.right_at, folder)
        at = datetime.fromtimestamp(damage.right_at)
        last = (
            f"it was last right at {at:%Y-%m-%d %H:%M}" if damage.right_at else "never read before"
        )
        folders = " ".join(str(reader.folder) for reader in self.readers)
        return (
            f"{damage.sentence} while this run trains on it ({last}). Steps {first} to {step} may "
            "have had other tokens, and nothing is saved now. Copy the file again; then `python "
            f"data_prep/verify.py {folders} --run {folder.path}` names the steps "
            "that had, and the same command continues the run: delete the checkpoints after the "
            "first of them to have those steps done again"
        )

    def _step_at(self, right_at: float, folder: RunFolder) -> int:
        """A step that the run had reached by then at the most, by its notes and its starts."""
        earlier = [step for at, step in self._notes if at <= right_at]
        if earlier:
            return earlier[-1]
        first = 0
        for line in read_lines(folder.starts):
            step = line.get("started_at_step")
            if isinstance(step, int):
                first = step if _unix_time(line) <= right_at else min(first, step)
        return first


def _unix_time(line: dict[str, Any]) -> float:
    """When a start was; 0 if its line does not tell."""
    try:
        return datetime.fromisoformat(line["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0
