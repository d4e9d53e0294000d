"""Made-up texts, their files in every format, and data sets prepared from them, for tests."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from data_prep.dataset.shards import DataSet, check_data_set
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.sources.file_source import file_source

WORDS = [
    "a",
    "river",
    "of",
    "light",
    "runs",
    "under",
    "old",
    "stone",
    "while",
    "birds",
    "wait",
    "for",
    "rain",
    "and",
    "evening",
]


def story(number: int, words: int = 40) -> str:
    return f"Story {number}. " + " ".join(random.Random(number).choices(WORDS, k=words))


STORIES = [story(number) for number in range(60)]


def texts_of(data: DataSet, split: str = "train") -> list[str]:
    """The documents of a split, each without the end-of-text that opens it."""
    tokens, tokenizer = data.split(split), data.tokenizer()
    documents = [tokens.read_document(index).tolist() for index in range(tokens.documents)]
    assert all(document[0] == tokenizer.end_of_text for document in documents)
    return [tokenizer.decode(document[1:]) for document in documents]


def prepared(folder: Path, *names: str, **options) -> DataSet:
    """All text of the named files as training data."""
    keys = ("text_key", "separator", "template")
    reading = {key: options.pop(key) for key in keys if key in options}
    source = file_source([str(folder / name) for name in names], **reading)
    data = prepare(
        source, folder / "out", PrepareOptions(workers=1, **{"val_tokens": 0, **options})
    )
    check_data_set(data, "full")
    return data


def write_lines(path: Path, texts: list, key: str = "text") -> None:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_as(kind: str, path: Path, texts: list[str]) -> Path:
    path = path / f"source{kind}"
    if kind == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
        return path
    write_lines(path.with_suffix(".plain"), texts)
    plain = path.with_suffix(".plain").read_bytes()
    if kind == ".txt":
        plain = "\n<|endoftext|>\n".join(texts).encode()
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(compress.get(path.suffix, bytes)(plain))
    return path
