"""Reads the items of a task from a local file or from a data set on the Hugging Face Hub.

Rank 0 reads and sends the items to all ranks. They stay in memory, so a task that runs often
during training reads once. `--task-file NAME=PATH` works for every task that has an ItemSource.
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
from storage.user_errors import reason_of

_T = TypeVar("_T")
_R = TypeVar("_R")
_LocatedRow = tuple[str, Any]
"""Its place (file and line, for error messages) and its content."""

_PROBE_SECONDS = 3.0
_PROBE_PAUSES = (0.0, 0.5, 1.5)  # seconds before each try, because the Hub sometimes answers 503
_OPENERS = {".xz": lzma.open, ".gz": gzip.open}
_READ_ERRORS = (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError)


@dataclass(frozen=True)
class HubFile:
    """One file of a data set, checked against its digest."""

    repository: str
    file: str
    revision: str
    sha256: str | None


@dataclass(frozen=True)
class HubTable:
    """One split of a data set, loaded by the library `datasets`."""

    repository: str
    config: str | None
    split: str
    revision: str
    """The commit. A branch would change the items when the data set changes."""


@dataclass(frozen=True)
class ItemSource(Generic[_T]):
    """Where the items of a task come from, and how to read one."""

    task: str
    hub: HubFile | HubTable
    read: Callable[[str, Any], _T]
    """Turns a row's place and content into an item. Raises: ValueError if the row is bad."""
    examples: HubFile | HubTable | None = None
    """The split with the few-shot examples; None if the task has no few-shot form."""
    spare_example: bool = False
    """Whether to draw one example more than is shown. lm-evaluation-harness does this for tasks
    without a test split."""

    flag: str = ""
    """Option of its own for a local file, if every script that reads the task has it."""

    @property
    def option(self) -> str:
        """The option that names a local file, for error messages."""
        if self.flag:
            return f"--{self.flag} FILE (in training --eval.{self.flag})"
        return f"--task-file {self.task}=FILE (in training --eval.task-file)"


def read_items(source: ItemSource[_T], subject: Subject, options: EvalOptions) -> tuple[_T, ...]:
    """The first `options.items` items, on every rank.

    Raises: on every rank DataUnavailable if they cannot be read, ValueError if one of them is bad.
    """
    found = _load(source, options.files.get(source.task), subject)
    return found[: options.items]


def read_examples(source: ItemSource[_T], subject: Subject, options: EvalOptions) -> tuple[_T, ...]:
    """All items of the few-shot split, on every rank. Raises: as `read_items`."""
    if source.examples is None:
        raise ValueError(f"{source.task} has no few-shot examples; omit --few-shot")
    train = ItemSource(source.task + EXAMPLES_SUFFIX, source.examples, source.read)
    return _load(train, options.example_files.get(source.task), subject)


def _load(source: ItemSource[_T], file: Path | None, subject: Subject) -> tuple[_T, ...]:
    found = _load_on_rank_0(source, file, subject.ranks.is_main)
    if isinstance(found, ValueError):
        raise found.with_traceback(None)
    if not found:
        raise ValueError(f"there are no items to score; give {source.option} with some items")
    return found


@cache
def _load_on_rank_0(
    source: ItemSource[_T], file: Path | None, is_main: bool
) -> tuple[_T, ...] | ValueError:
    """The items that rank 0 read, or its error, on every rank; cached, errors too."""
    found: tuple[_T, ...] | ValueError = ()
    if is_main:
        try:
            rows = rows_of_file(file) if file else rows_of_hub(source.hub, source.option)
            found = tuple(source.read(where, row) for where, row in rows)
        except ValueError as error:
            found = error
        except Exception as error:  # whatever it is: the other ranks wait in the broadcast
            found = DataUnavailable(
                f"{source.hub.repository} cannot be read ({type(error).__name__}: {error}); "
                f"give a local copy as {source.option}"
            )
    return broadcast_object(found)


def rows_of_file(path: Path) -> Iterator[_LocatedRow]:
    """The rows of a .parquet, .jsonl, .jsonl.xz or .jsonl.gz file.

    Raises: ValueError naming the bad line.
    """
    try:
        if path.suffix == ".parquet":
            yield from ((f"{path} row {i}", row) for i, row in enumerate(_parquet_rows(path)))
        else:
            with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as lines:
                yield from _json_lines(path, lines)
    except _READ_ERRORS as error:
        raise ValueError(f"{path} cannot be read ({reason_of(error)}); copy it again") from error


def _parquet_rows(path: Path) -> list[Any]:
    # Imported here, because every start of every rank would pay for it, and few read parquet.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[_LocatedRow]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON ({error}); copy the file again") from error


def rows_of_hub(hub: HubFile | HubTable, option: str) -> Iterator[_LocatedRow]:
    """The rows of a data set from the Hub or its cache on this machine.

    Raises: DataUnavailable, after a few seconds, if it is in neither.
    """
    if isinstance(hub, HubFile):
        # Imported here, because `datasets` takes seconds to import.
        from datasets import load_dataset

        path = _verified_file(hub, option)
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    else:
        rows = _hub_table(hub, option)
    yield from ((f"{hub.repository} row {i}", row) for i, row in enumerate(rows))


def _hub_table(hub: HubTable, option: str) -> Iterable[Any]:
    """The rows of the split, from the cache if it has them, otherwise from the Hub."""
    from datasets import Dataset, config, load_dataset
    from huggingface_hub import HfApi

    # Look into the cache by hand: without a network `datasets` needs half a minute to use it.
    folder = Path(config.HF_DATASETS_CACHE) / hub.repository.replace("/", "___")
    pattern = f"{hub.config or '*'}/*/{hub.revision}/*-{hub.split}.arrow"
    cached = next(folder.glob(pattern), None)
    if cached is not None:
        return Dataset.from_file(str(cached))
    ask = partial(HfApi().dataset_info, hub.repository, revision=hub.revision)
    _with_retries(hub.repository, option, lambda: ask(timeout=_PROBE_SECONDS))
    return load_dataset(hub.repository, hub.config, split=hub.split, revision=hub.revision)


def _with_retries(repository: str, option: str, ask: Callable[[], _R]) -> _R:
    """The Hub's answer to `ask`, with retries. Raises: DataUnavailable with the last reason."""
    reason: Exception | None = None
    for pause in _PROBE_PAUSES:
        time.sleep(pause)
        try:
            return ask()
        except Exception as error:  # huggingface_hub's error classes change between major versions
            reason = error
    raise DataUnavailable(
        f"{repository} cannot be downloaded from the Hub ({type(reason).__name__}); give a local "
        f"copy as {option}, or run once on a machine with network access to fill the cache"
    ) from reason


def _verified_file(hub: HubFile, option: str) -> Path:
    """The file on this machine. If its digest is wrong, it is downloaded once more."""
    # huggingface_hub checks the size of a download, not its digest: a flipped byte goes unnoticed.
    path = _hub_file(hub, option)
    if hub.sha256 is not None and file_sha256(path) != hub.sha256:
        path = _hub_file(hub, option, again=True)
        if file_sha256(path) != hub.sha256:
            raise DataUnavailable(
                f"{hub.repository} was damaged in two downloads ({path} does not have sha256 "
                f"{hub.sha256}); give a good copy as {option}"
            )
    return path


def _hub_file(hub: HubFile, option: str, again: bool = False) -> Path:
    """The file's path on this machine, after a download if it is not cached (or if `again`)."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    arguments: dict[str, Any] = {"repo_type": "dataset", "revision": hub.revision}
    fetch = partial(hf_hub_download, hub.repository, hub.file, **arguments)
    try:
        if not again:
            return Path(fetch(local_files_only=True))
    except FileNotFoundError:
        pass  # not in the cache
    url = hf_hub_url(hub.repository, hub.file, **arguments)

    def ask() -> Path:
        # Probe first: without a network the download would only give up after half a minute.
        get_hf_file_metadata(url, timeout=_PROBE_SECONDS)
        return Path(fetch(force_download=again))

    return _with_retries(hub.repository, option, ask)
