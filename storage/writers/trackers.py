"""The trackers of other people that can get the metrics of a run, by name."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from storage.metrics import MetricWriter
from storage.writers.trackio_writer import TrackioWriter
from storage.writers.wandb_writer import WandbWriter

_TRACKERS: dict[str, Callable[[Path, str], MetricWriter]] = {
    "trackio": TrackioWriter,
    "wandb": WandbWriter,
}


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises: ValueError if one is not known or not installed."""
    for name in names:
        if name not in _TRACKERS:
            raise ValueError(f"log.to={name} is not known; use one of {', '.join(_TRACKERS)}")
        found = find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, such as wandb writes
            raise ValueError(
                f"log.to={name} needs the package {name}, which is not installed; install it by "
                f"pip install -e '.[{name}]', or leave it out of --log.to"
            )


def trackers(names: tuple[str, ...], run: Path, run_id: str) -> list[MetricWriter]:
    """A writer for each name. A later start of the same run continues there."""
    return [_TRACKERS[name](run, run_id) for name in dict.fromkeys(names)]
