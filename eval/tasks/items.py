"""Where a task's rows come from: a local file, or a data set of the Hugging Face Hub.

Rank 0 reads, all ranks get the items; they are remembered, so a task that is run again and again
in training reads once. A new task needs no option of its own: `--task-file NAME=PATH` serves all.
"""

import gzip
import json
import lzma
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from eval.subject import EXAMPLES_SUFFIX, DataUnavailable, EvalOptions, Subject
from parallel.collectives import broadcast_object
from storage.digest import file_sha256

T = TypeVar("T")
R = TypeVar("R")
Row = tuple[str, Any]
"""Where it stands, for messages, and what it holds."""

PROBE_SECONDS = 3.0
PROBE_PAUSES = (0.0, 0.5, 1.5)  # seconds before each try: the Hub now and then answers 503
OPENERS = {".xz": lzma.open, ".gz": gzip.open}
DAMAGED = (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError)


@dataclass(frozen=True)
class HubFile:
    """One file of a data set, held to its digest."""

    repository: str
    file: str
    revision: str
    sha256: str | None


@dataclass(frozen=True)
class HubTable:
    """One split of a data set, as the library `datasets` finds it."""

    repository: str
    config: str | None
    split: str
    revision: str
    """Commit."""


@dataclass(frozen=True)
class ItemSource(Generic[T]):
    """The items of one task."""

    task: str
    hub: HubFile | HubTable
    read: Callable[[str, Any], T]
    """An item from where it stands and its row. Raises: ValueError for a row that is none."""
    examples: HubFile | HubTable | None = None
    """Where the few-shot examples are drawn from: the training split, if the task can have any."""
    spare_example: bool = False
    """Whether one more is drawn than shown, as lm-evaluation-harness does where its task names no
    test split."""

    @property
    def option(self) -> str:
        """The option that names a local file instead."""
        return f"--task-file {self.task}=FILE (in training --eval.task-file)"


def read_items(source: ItemSource[T], subject: Subject, options: EvalOptions) -> tuple[T, ...]:
    """The first `options.items` items, on every rank.

    Raises: DataUnavailable on every rank if they cannot be had; ValueError if they are bad.
    """
    found = _items(source, options.files.get(source.task), subject)
    return found[: options.items]


def read_examples(source: ItemSource[T], subject: Subject, options: EvalOptions) -> tuple[T, ...]:
    """All that few-shot examples are drawn from, on every rank. Raises: as `read_items`."""
    if source.examples is None:
        raise ValueError(f"{source.task} has no few-shot examples; leave --few-shot out")
    train = ItemSource(source.task + EXAMPLES_SUFFIX, source.examples, source.read)
    return _items(train, options.example_files.get(source.task), subject)


def _items(source: ItemSource[T], file: Path | None, subject: Subject) -> tuple[T, ...]:
    found = _shared_items(source, file, subject.ranks.is_main)
    if isinstance(found, ValueError):
        raise found.with_traceback(None)
    if not found:
        raise ValueError(f"there are no items to score; give {source.option} that holds some")
    return found


@cache
def _shared_items(
    source: ItemSource[T], file: Path | None, is_main: bool
) -> tuple[T, ...] | ValueError:
    """Rank 0's items, or why there are none, on every rank; remembered, so asked for only once."""
    found: tuple[T, ...] | ValueError = ()
    if is_main:
        try:
            rows = rows_of_file(file) if file else rows_of_hub(source.hub, source.option)
            found = tuple(source.read(where, row) for where, row in rows)
        except ValueError as error:
            found = error
        except Exception as error:  # the other ranks wait for an answer, whatever it is
            found = DataUnavailable(
                f"{source.hub.repository} cannot be read ({type(error).__name__}: {error}); "
                f"give a local copy as {source.option}"
            )
    return broadcast_object(found)


def rows_of_file(path: Path) -> Iterator[Row]:
    """The rows of a .parquet or .jsonl file, the latter packed or not.

    Raises: ValueError naming the line that cannot be used.
    """
    try:
        if path.suffix == ".parquet":
            yield from ((f"{path} row {i}", row) for i, row in enumerate(_parquet_rows(path)))
        else:
            with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as lines:
                yield from _json_lines(path, lines)
    except DAMAGED as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again") from error


def _parquet_rows(path: Path) -> list[Any]:
    # Every start of every rank would wait for this import, and few read such a file.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON ({error}); copy the file again") from error


def rows_of_hub(hub: HubFile | HubTable, option: str) -> Iterator[Row]:
    """The rows of a data set of the Hub or of its cache on this machine.

    Raises: DataUnavailable, within seconds, if neither has it.
    """
    if isinstance(hub, HubFile):
        # `datasets` takes seconds to import, and whoever has no such file never needs it.
        from datasets import load_dataset

        path = _sound_file(hub, option)
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    else:
        rows = _table(hub, option)
    yield from ((f"{hub.repository} row {i}", row) for i, row in enumerate(rows))


def _table(hub: HubTable, option: str) -> Iterable[Any]:
    """The split, from the cache if it is there, else the Hub's."""
    from datasets import Dataset, config, load_dataset
    from huggingface_hub import HfApi

    # Asking `datasets` for its cache takes half a minute where there is no Hub.
    folder = Path(config.HF_DATASETS_CACHE) / hub.repository.replace("/", "___")
    pattern = f"{hub.config or '*'}/*/{hub.revision}/*-{hub.split}.arrow"
    cached = next(folder.glob(pattern), None)
    if cached is not None:
        return Dataset.from_file(str(cached))
    ask = partial(HfApi().dataset_info, hub.repository, revision=hub.revision)
    _with_retries(hub.repository, option, lambda: ask(timeout=PROBE_SECONDS))
    return load_dataset(hub.repository, hub.config, split=hub.split, revision=hub.revision)


def _with_retries(repository: str, option: str, ask: Callable[[], R]) -> R:
    """What the Hub answers, after some tries. Raises: DataUnavailable with the last reason."""
    reason: Exception | None = None
    for pause in PROBE_PAUSES:
        time.sleep(pause)
        try:
            return ask()
        except Exception as error:  # the transport's own classes changed with every major version
            reason = error
    raise DataUnavailable(
        f"{repository} cannot be had from the Hub ({type(reason).__name__}); give a local copy "
        f"as {option}, or fetch it once where there is a network"
    ) from reason


def _sound_file(hub: HubFile, option: str) -> Path:
    """The file on this machine with the right digest, fetched once more if it has not."""
    path = _hub_file(hub, option)
    if hub.sha256 is not None and file_sha256(path) != hub.sha256:
        path = _hub_file(hub, option, again=True)
        if file_sha256(path) != hub.sha256:
            raise DataUnavailable(
                f"{hub.repository} arrived damaged twice ({path} is not sha256 {hub.sha256}); "
                f"give a good copy as {option}"
            )
    return path


def _hub_file(hub: HubFile, option: str, again: bool = False) -> Path:
    """The file's place on this machine, fetched if need be (or if `again`)."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    place: dict[str, Any] = {"repo_type": "dataset", "revision": hub.revision}
    fetch = partial(hf_hub_download, hub.repository, hub.file, **place)
    try:
        if not again:
            return Path(fetch(local_files_only=True))
    except FileNotFoundError:
        pass  # not in the cache: ask the Hub
    url = hf_hub_url(hub.repository, hub.file, **place)

    def ask() -> Path:
        # Without this, the download would wait half a minute for a Hub that is not there.
        get_hf_file_metadata(url, timeout=PROBE_SECONDS)
        return Path(fetch(force_download=again))

    return _with_retries(hub.repository, option, ask)
