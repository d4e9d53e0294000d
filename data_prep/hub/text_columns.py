"""Which field of a repository's records is the text, from its first file."""

import logging

import pyarrow.parquet as parquet

from data_prep.hub.listing import HubSource
from data_prep.sources.file_source import Span, Unit
from data_prep.sources.formats import format_of
from data_prep.sources.json_lines import text_keys
from data_prep.sources.parquet_files import column_names, text_column
from data_prep.sources.records import BadRecord
from data_prep.sources.text_fields import text_fields

log = logging.getLogger(__name__)

_USUAL = "text"
_NAMES_SHOWN = 20


def chosen_text_key(source: HubSource, repository: str) -> str:
    """The usual field, or the only one with text; the first file must be here.

    Raises: ValueError naming the fields with text if there are others or none.
    """
    file = source.files[0]
    path, kind = source.planning_path(file), format_of(file.name)
    if kind == ".txt":
        return _USUAL
    if kind == ".parquet":
        found = column_names(parquet.read_schema(path), of_text=True)
    else:
        found = text_keys(path)
    if _USUAL in found or (kind == ".jsonl" and not found):  # reading it says what is wrong
        return _USUAL
    if len(found) == 1:
        log.info("the text is in %s, the only field of %s with text", found[0], repository)
        return found[0]
    names = f"{found[:_NAMES_SHOWN]}{' and more' if len(found) > _NAMES_SHOWN else ''}"
    there = f"fields with text: {names}" if found else "no field with text"
    raise ValueError(
        f"{repository}/{file.name} has no field {_USUAL!r} ({there}); name one with --text-key, "
        "or join several with --template"
    )


def check_first_record(source: HubSource, repository: str, tolerant: bool) -> None:
    """Raises: ValueError if the first file does not have the fields of the text.

    With `tolerant`, a first record of JSON lines without them counts as any other bad record.
    """
    file = source.files[0]
    fields = text_fields(source.text_key, source.template)
    if format_of(file.name) == ".parquet":
        schema = parquet.read_schema(source.planning_path(file))
        for name in fields.names:
            text_column(schema, name, f"{repository}/{file.name}", fields.option)
        return
    try:
        first = next(source.pieces(0, 1), None)
    except ValueError as error:  # such as one JSON document; the file does not stay here
        what = str(error).partition(";")[0].replace(str(source.planning_path(file)), "it")
        raise ValueError(
            f"{repository}/{file.name}: {what}; the Hub's conversion to parquet may have it: "
            "--revision refs/convert/parquet"
        ) from error
    if first is not None:
        span = Span(0, first.start, first.stop, 0, first.rows)
        record = next(source.records(Unit((span,), 0, first.rows, first.text_bytes)))
        if isinstance(record, BadRecord) and not tolerant:
            raise record
