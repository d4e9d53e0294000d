"""Reads the sources of a mixture and their weights as a user writes them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from data_prep.order.shares import in_windows

_WEIGHT = re.compile(r"\d+|\d*\.\d+|\d+\.|\d+/0*[1-9]\d*", re.ASCII)
# What somebody may have meant as a weight; other endings belong to the name of the folder.
_NUMBER_LIKE = re.compile(r"[-+.,\d/e]*\d[-+.,\d/e]*%?|[-+]?(nan|inf\w*)", re.ASCII | re.IGNORECASE)
_MOST_DIGITS = 12  # of a step
_LONGEST_WEIGHT = 16  # characters


@dataclass(frozen=True)
class _NamedFolder:
    """A data set's folder and its weight in a mixture."""

    folder: Path
    weight: Fraction


@dataclass(frozen=True)
class WeightChange:
    """New weights from a step on, in the order of the sources."""

    step: int
    weights: tuple[Fraction, ...]


@dataclass(frozen=True)
class WeightStart:
    """The window with which a change of weights begins: the first that its step reads."""

    step: int
    first_window: int
    weights: tuple[Fraction, ...]

    def as_json(self) -> dict[str, Any]:
        """As a checkpoint records it."""
        weights = list(map(str, self.weights))
        return {"step": self.step, "first_window": self.first_window, "weights": weights}

    @classmethod
    def from_json(cls, found: Any) -> "WeightStart":
        """From what `as_json` gave. Raises: ValueError if it is not that."""
        try:
            weights = tuple(_weight(weight, "mixture") for weight in found["weights"])
            return cls(int(found["step"]), int(found["first_window"]), weights)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{found!r:.80} is no change of weights") from error


def folders_and_weights(places: Sequence[Path]) -> tuple[_NamedFolder, ...]:
    """Each `FOLDER:WEIGHT`; of a single source the weight may be left out.

    Raises: ValueError if a weight is missing, no number or negative, all are zero, or a folder is
    named twice.
    """
    if not places:
        raise ValueError("data names no folder; give --data FOLDER, or several as FOLDER:WEIGHT")
    found = [parsed_place(place) for place in places]
    if len(found) == 1 and found[0].weight is None:
        return (_NamedFolder(found[0].folder, Fraction(1)),)
    lacking = [str(place.folder) for place in found if place.weight is None]
    if lacking:
        verb = "has" if len(lacking) == 1 else "have"
        raise ValueError(
            f"data {' '.join(map(str, places))}: {', '.join(lacking)} {verb} no weight; "
            "with several sources give each as FOLDER:WEIGHT, such as data/stories:0.2"
        )
    seen: set[Path] = set()
    for place in found:
        if place.folder.resolve() in seen:
            raise ValueError(f"data names {place.folder} twice; give it once, with both weights")
        seen.add(place.folder.resolve())
    named = tuple(_NamedFolder(p.folder, p.weight) for p in found if p.weight is not None)
    in_windows([place.weight for place in named])
    return named


@dataclass(frozen=True)
class _Place:
    """A folder as it was written, perhaps without a weight."""

    folder: Path
    weight: Fraction | None = None


def parsed_place(place: Path) -> _Place:
    """Folder and weight of `FOLDER:WEIGHT`. Raises: ValueError for a weight that is none."""
    folder, colon, weight = str(place).rpartition(":")
    # A folder may have a colon in its name.
    if not colon or not folder or not _NUMBER_LIKE.fullmatch(weight) or place.is_dir():
        return _Place(place)
    return _Place(Path(folder), _weight(weight, f"data {place}"))


def check_one_mixture(words: Sequence[str], flag: str = "--data") -> None:
    """Raises: ValueError for `--data a:0.5 --data b:0.5`, of which a parser reads only the last."""
    values = []
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name == flag:
            values.append(value if equals else following)
    if len(values) > 1 and all(parsed_place(Path(value)).weight is not None for value in values):
        raise ValueError(
            f"{flag} is given {len(values)} times; give the sources of a mixture after one: {flag} "
            f"{' '.join(values)}"
        )


def _weight(text: str, where: str) -> Fraction:
    """A weight. Raises: ValueError for what is none."""
    if not _WEIGHT.fullmatch(text) or len(text) > _LONGEST_WEIGHT:
        raise ValueError(
            f"{where}: {text} is no weight; give a number that is 0 or more, of at most "
            f"{_LONGEST_WEIGHT} characters, such as 0.2 or 1/3"
        )
    return Fraction(text)


def weight_changes(words: Sequence[str], sources: int) -> tuple[WeightChange, ...]:
    """The changes that `STEP WEIGHT WEIGHT …` describe, one after the other.

    Raises: ValueError if there are not as many weights as sources, steps do not rise from 1, or a
    weight is none.
    """
    size, where = 1 + sources, f"data_weights_at {' '.join(words)}"
    if len(words) % size:
        raise ValueError(
            f"{where}: after each step there must be {sources} weights, one for each source of "
            f"--data; that makes {size} numbers for a change"
        )
    if words and sources == 1:
        raise ValueError(f"{where}: --data names a single source, which has no weights to change")
    found: list[WeightChange] = []
    for at in range(0, len(words), size):
        text = words[at]
        step = int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else 0
        if step <= (found[-1].step if found else 0):
            raise ValueError(
                f"{where}: {text} is no step for a change; give steps from 1 on, each later than "
                "the one before"
            )
        weights = tuple(_weight(word, where) for word in words[at + 1 : at + size])
        in_windows(weights)
        found.append(WeightChange(step, weights))
    return tuple(found)
