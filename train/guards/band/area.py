"""What a picture shows of a band: where sound runs are."""

from collections.abc import Sequence
from dataclasses import dataclass

from train.guards.band.comparison import PICTURED_SHARE, range_of_sound_runs
from train.guards.band.marks import HELD_OUT_LOSS, LONGEST_WINDOW, TRAIN_LOSS, window_of
from train.guards.band.record import Band


@dataclass(frozen=True)
class BandArea:
    """Where the loss of sound runs is."""

    points: Sequence[tuple[float, float, float]]
    """Tokens trained on, lowest and highest loss."""
    label: str


def band_areas(band: Band | None, batch_tokens: int) -> list[BandArea]:
    """The areas of training and validation loss; none without a band."""
    if band is None:
        return []
    found = []
    means = f"training, means of {LONGEST_WINDOW} steps"
    for figure, what in ((TRAIN_LOSS, means), (HELD_OUT_LOSS, "validation")):
        points = []
        for number, mark in enumerate(band.marks):
            ends = range_of_sound_runs(band, figure, number)
            if ends is not None:
                middle = mark - len(window_of(mark)) / 2 if figure == TRAIN_LOSS else mark
                points.append((middle * batch_tokens, *ends))
        label = f"{what}: {PICTURED_SHARE:.0%} of sound runs ({len(band.seeds)} seeds)"
        found.append(BandArea(points, label))
    return [area for area in found if area.points]
