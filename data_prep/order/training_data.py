"""What a run reads: one data set, or several in a mixture."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from data_prep.dataset.manifest import Manifest
from data_prep.dataset.shards import DataSet, TokenShards, open_data_set
from data_prep.order.mixture_stream import stream_of
from data_prep.order.shares import Assignment, WeightStretch, in_windows
from data_prep.order.training_stream import TrainingStream
from data_prep.order.weights import WeightStart, folders_and_weights, parsed_place
from data_prep.order.windows import WindowStream
from data_prep.tokenizer import Tokenizer
from storage.digest import fingerprint


@dataclass(frozen=True)
class Source:
    """One data set of a mixture."""

    name: str
    """Name of its folder, with as many of the folders above as set it apart from the others."""
    data: DataSet
    weight: Fraction
    """Its share of the windows, until the weights change. All together are 1."""

    @property
    def tokens(self) -> int:
        """Its training tokens."""
        return self.data.manifest.train.tokens

    @property
    def manifest(self) -> Manifest:
        """The manifest of its data set."""
        return self.data.manifest


@dataclass(frozen=True)
class TrainingData:
    """Opened data sets, made with one tokenizer."""

    sources: tuple[Source, ...]

    @property
    def is_mixture(self) -> bool:
        """Whether there are several sources."""
        return len(self.sources) > 1

    @property
    def fingerprint(self) -> str:
        """That of the data set; of a mixture one sha256 over those of its sources and the weights.

        Weights that change at a later step do not affect it.
        """
        if not self.is_mixture:
            return self.sources[0].data.fingerprint
        return fingerprint([[s.data.fingerprint, str(s.weight)] for s in self.sources])

    @property
    def tokens(self) -> int:
        """Training tokens of all sources together."""
        return sum(source.tokens for source in self.sources)

    @property
    def tokens_before_a_repeat(self) -> int:
        """Tokens after which the first of the sources has been read once."""
        return min(int(s.tokens / s.weight) for s in self.sources if s.weight)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in the shards: the same in all sources, which have one tokenizer."""
        return self.sources[0].manifest.token_bytes

    @property
    def val_tokens(self) -> int:
        """Validation tokens of all sources together."""
        return sum(source.manifest.val.tokens for source in self.sources)

    @property
    def unigram_entropy_nats(self) -> float:
        """Loss per token of the best model that knows only how often each id occurs in a source.

        Of a mixture, the mean over its sources by their weights.
        """
        return self._mean(lambda data: data.manifest.train.unigram_entropy_nats)

    def mean_of_train(self, value: Callable[[TokenShards], float]) -> float:
        """The mean of something over the training tokens of the sources, by their weights."""
        return self._mean(lambda data: value(data.split("train")))

    def _mean(self, value: Callable[[DataSet], float]) -> float:
        return math.fsum(float(source.weight) * value(source.data) for source in self.sources)

    def recorded(self) -> str | list[str]:
        """The folders as `--data` names them, with absolute paths; of one source only its folder.

        `open_training_data` of `recorded_places` opens them again.
        """
        if not self.is_mixture:
            return str(self.sources[0].data.folder.resolve())
        return [f"{s.data.folder.resolve()}:{_text(s.weight)}" for s in self.sources]

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens. Raises: ValueError if its files are not its own."""
        return self.sources[0].data.tokenizer()

    def stream(
        self, seed: int, starts: Sequence[WeightStart] = (), stored_indexes: bool = True
    ) -> WindowStream:
        """The windows that a run with this seed reads.

        `starts` are the windows at which other weights begin. `stored_indexes=False` builds every
        epoch's index, for a proof of the order.
        Raises: ValueError if a source has no training tokens.
        """
        streams = [
            TrainingStream(source.data.split("train"), seed, stored_indexes)
            for source in self.sources
        ]
        return stream_of(streams, self.assignment(starts), starts)

    def assignment(self, starts: Sequence[WeightStart] = ()) -> Assignment:
        """Which source each window is from, with other weights from some windows on."""
        first = WeightStretch(0, in_windows([source.weight for source in self.sources]))
        later = [WeightStretch(start.first_window, in_windows(start.weights)) for start in starts]
        return Assignment([first, *later])

    def over(self, folders: Iterator[DataSet]) -> "TrainingData":
        """The same with other copies of the data sets, in the order of the sources."""
        pairs = zip(self.sources, folders, strict=True)
        return TrainingData(tuple(replace(source, data=data) for source, data in pairs))


def recorded_places(recorded: str | list[str]) -> tuple[Path, ...]:
    """The folders that a record names, as `--data` names them.

    Raises: ValueError if it names none.
    """
    places = [recorded] if isinstance(recorded, str) else recorded
    if not places or not all(isinstance(place, str) for place in places):
        raise ValueError(f"{places!r:.80} names no data set; give it with --data")
    return tuple(map(Path, places))


def open_again(recorded: Sequence[Path], named: Sequence[Path] = ()) -> TrainingData:
    """The data of a run, as recorded or in the folders that are named, in the order of the sources.

    Raises: ValueError if there are not as many, and as `open_training_data` does.
    """
    if not named:
        return open_training_data(recorded)
    if len(named) != len(recorded):
        raise ValueError(
            f"the run reads {len(recorded)} data sets ({' '.join(map(str, recorded))}), and "
            f"{len(named)} are named; name the folder of each, in this order"
        )
    if len(recorded) == 1:
        return open_training_data(named)
    folders = [place.folder for place in map(parsed_place, named)]
    weights = [place.weight for place in folders_and_weights(recorded)]
    pairs = zip(folders, weights, strict=True)
    return open_training_data([Path(f"{folder}:{weight}") for folder, weight in pairs])


def open_training_data(places: Sequence[Path]) -> TrainingData:
    """The data sets that `--data` names as FOLDER or FOLDER:WEIGHT; headers and sizes are checked.

    Raises: ValueError if one is missing, damaged, named twice or has no training tokens, weights
    are none, or two sources have different tokenizers.
    """
    named = folders_and_weights(places)
    found = [open_data_set(place.folder) for place in named]
    total = sum(place.weight for place in named)
    names = _names([data.folder for data in found])
    parts = zip(names, found, named, strict=True)
    data = TrainingData(tuple(Source(name, d, place.weight / total) for name, d, place in parts))
    _check_sources(data.sources)
    return data


def _text(weight: Fraction) -> str:
    """A weight as `--data` takes it: a decimal number, or a fraction where there is none."""
    decimal = f"{float(weight):.10f}".rstrip("0").rstrip(".")
    return decimal if Fraction(decimal) == weight else str(weight)


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each folder's path, as few as make all different."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts))
    candidates = (["/".join(path[-n:]) for path in parts] for n in range(1, longest + 1))
    return next(
        (names for names in candidates if len(set(names)) == len(names)), list(map(str, folders))
    )


def _check_sources(sources: Sequence[Source]) -> None:
    """Raises: ValueError if the sources do not fit together."""
    first = sources[0]
    seen: dict[str, Path] = {}
    for source in sources:
        folder = source.data.folder
        source.data.split("train")
        if (other := seen.get(source.data.fingerprint)) is not None:
            raise ValueError(
                f"{folder} is the same data set as {other}; name it once, with both weights"
            )
        seen[source.data.fingerprint] = folder
        one, two = first.manifest.tokenizer, source.manifest.tokenizer
        if replace(one, name="") != replace(two, name=""):
            raise ValueError(
                f"{first.data.folder} was made with the tokenizer {one.name} ({one.n_vocab:,} ids) "
                f"and {folder} with another, {two.name} ({two.n_vocab:,} ids); prepare {folder} "
                f"again with --tokenizer {first.data.folder / 'tokenizer'}"
            )
