"""The formats of text files, by the suffixes of their names, in upper or lower case."""

from collections.abc import Callable
from pathlib import Path

from data_prep.sources.byte_streams import compression_of, compressions
from data_prep.sources.json_lines import JsonLinesFormat
from data_prep.sources.parquet_files import ParquetFormat
from data_prep.sources.pieces import FileFormat
from data_prep.sources.text_files import SeparatedTextFormat

# Of text key, separator and template.
FORMATS: dict[str, Callable[[str, str, str | None], FileFormat]] = {
    ".txt": SeparatedTextFormat,
    ".jsonl": JsonLinesFormat,
    ".parquet": ParquetFormat,
}
_OTHER_SUFFIXES = {
    ".text": ".txt",
    ".ndjson": ".jsonl",
    ".jsonlines": ".jsonl",
    ".json": ".jsonl",
    ".pq": ".parquet",
}
KNOWN = (
    f"{', '.join(FORMATS)} and {', '.join(_OTHER_SUFFIXES)}; "
    f"all but parquet also with {', '.join(compressions())}"
)


def format_of(name: str) -> str:
    """The key in FORMATS for a file name; "" if its kind is not known."""
    packed = compression_of(name)
    suffix = Path(name[: len(name) - len(packed)]).suffix.lower()
    found = _OTHER_SUFFIXES.get(suffix, suffix)
    return found if found in FORMATS and not (packed and found == ".parquet") else ""
