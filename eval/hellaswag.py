"""HellaSwag, completion style: raw `ctx`, a space and the ending, as build-nanogpt scores it.

The items come from a local file or from `Rowan/hellaswag` on the Hugging Face Hub at a pinned
revision; rank 0 fetches, all ranks get them. Source: https://arxiv.org/abs/1905.07830
"""

import gzip
import json
import lzma
import time
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from eval.multiple_choice import Item, score_items
from eval.subject import DataUnavailable, EvalOptions, Subject
from parallel.ranks import from_main
from storage.digest import file_sha256

REPOSITORY = "Rowan/hellaswag"
REVISION = "218ec52e09a7e7462a5400043bb9a69a41d06b76"
VALIDATION_FILE = "data/validation-00000-of-00001.parquet"
VALIDATION_SHA256 = "899813071e1e95efafec90f856e1987d2150fa4d020fc005df6962c259f660cd"
PROBE_SECONDS = 3.0
PROBE_PAUSES = (0.0, 0.5, 1.5)  # seconds before each try: the Hub now and then answers 503

OPENERS = {".xz": lzma.open, ".gz": gzip.open}


def hellaswag(subject: Subject, options: EvalOptions) -> dict[str, float]:
    """The task: `hellaswag/acc` by summed loss and `hellaswag/acc_norm` by mean per token."""
    items = hellaswag_items(subject, options)
    return score_items(subject, items, options).accuracy_tags("hellaswag")


def hellaswag_items(subject: Subject, options: EvalOptions) -> tuple[Item, ...]:
    """The items that the options ask for, on every rank.

    Raises: DataUnavailable on every rank if they cannot be had; ValueError if they are bad.
    """
    found = _shared_items(options.hellaswag_file, subject.ranks.is_main)
    if isinstance(found, ValueError):
        raise found.with_traceback(None)
    return found[: options.items]


@cache
def _shared_items(file: Path | None, is_main: bool) -> tuple[Item, ...] | ValueError:
    """Rank 0's items, or why there are none, on every rank; remembered, so asked for only once."""
    found: tuple[Item, ...] | ValueError = ()
    if is_main:
        try:
            found = items_from_file(file) if file is not None else items_from_hub()
        except ValueError as error:
            found = error
        except Exception as error:  # the other ranks wait for an answer, whatever it is
            found = DataUnavailable(
                f"{REPOSITORY} cannot be read ({type(error).__name__}: {error}); give a local copy "
                "as --hellaswag-file"
            )
    return from_main(found)


def items_from_file(path: Path) -> tuple[Item, ...]:
    """The items of a .jsonl file, packed or not, in HellaSwag's schema.

    Raises: ValueError naming the line that cannot be used.
    """
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as lines:
            return items_from_rows(_json_lines(path, lines))
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again") from error


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON ({error}); copy the file again") from error


def items_from_rows(rows: Iterable[tuple[str, Any]]) -> tuple[Item, ...]:
    """Items from pairs of a place, for messages, and a row in HellaSwag's schema."""
    return tuple(_item(where, row) for where, row in rows)


def _item(where: str, row: Any) -> Item:
    if not isinstance(row, dict) or not {"ctx", "endings", "label"} <= row.keys():
        raise ValueError(
            f"{where} is not in HellaSwag's schema, which has ctx, endings and label; give the "
            "validation split as published"
        )
    context, endings, label = row["ctx"], row["endings"], str(row["label"])
    texts = [context, *endings] if isinstance(endings, list) else [None]
    if len(texts) < 3 or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{where} must have a text as ctx and a list of two or more as endings; give the "
            "validation split as published"
        )
    if not label:
        raise ValueError(
            f"{where} has an empty label, as the test split does; give the validation split"
        )
    if not label.isdecimal() or int(label) >= len(endings):
        raise ValueError(
            f"{where} has label {label!r}, which must be 0 to {len(endings) - 1}; correct the line"
        )
    return Item(context, tuple(endings), int(label))


def items_from_hub(
    revision: str = REVISION, sha256: str | None = VALIDATION_SHA256
) -> tuple[Item, ...]:
    """The validation split from the Hub or its cache on this machine.

    Raises: DataUnavailable, within seconds, if neither has it.
    """
    path = _hub_file(revision)
    if sha256 is not None and file_sha256(path) != sha256:
        path = _hub_file(revision, again=True)
        if file_sha256(path) != sha256:
            raise DataUnavailable(
                f"{REPOSITORY} arrived damaged twice ({path} is not sha256 {sha256}); "
                "give a good copy as --hellaswag-file"
            )
    # `datasets` takes seconds to import, and whoever has no such file never needs it.
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    return items_from_rows((f"{REPOSITORY} row {i}", row) for i, row in enumerate(rows))


def _hub_file(revision: str, again: bool = False) -> Path:
    """The validation file's place on this machine, fetched if need be (or if `again`)."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    fetch = partial(
        hf_hub_download, REPOSITORY, VALIDATION_FILE, repo_type="dataset", revision=revision
    )
    try:
        if not again:
            return Path(fetch(local_files_only=True))
    except FileNotFoundError:
        pass  # not in the cache: ask the Hub
    url = hf_hub_url(REPOSITORY, VALIDATION_FILE, repo_type="dataset", revision=revision)
    reason: Exception | None = None
    for pause in PROBE_PAUSES:
        time.sleep(pause)
        try:
            # Without this, the download would wait half a minute for a Hub that is not there.
            get_hf_file_metadata(url, timeout=PROBE_SECONDS)
            return Path(fetch(force_download=again))
        except Exception as error:  # the transport's own classes changed with every major version
            reason = error
    raise DataUnavailable(
        f"{REPOSITORY} cannot be had from the Hub ({type(reason).__name__}); give a local copy "
        "as --hellaswag-file, or fetch it once where there is a network"
    ) from reason
