"""The tokenizer of a data set, learned from the source of the data set itself."""

import logging
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from data_prep.dataset.manifest import MANIFEST_NAME, read_manifest
from data_prep.preparation.bad_records import TooManyBadRecords
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.split import FEW_DOCUMENTS, resolved_split, without_tail
from data_prep.sources.file_source import DocumentSource, Span, Unit, append_span
from data_prep.sources.records import BadRecord
from data_prep.tokenizer import Tokenizer, load_tokenizer
from data_prep.vocabulary.measured import MOST_HELD_OUT, Phases, log_bytes_per_token
from data_prep.vocabulary.merges import (
    NO_TEXT,
    check_can_learn,
    check_vocab_size,
    learn_merges,
)
from storage.byte_pairs import GPT2_PATTERN, ranks_file
from storage.terminal.quantities import data_size

# Merges need no more text, and they are learned in memory.
_MOST_BYTES = 200_000_000
_LEAST_BYTES = 1000
_PIECE_BYTES = 1 << 28
_SMALLEST, _LARGEST = 384, 8192
log = logging.getLogger(__name__)


def fitting_vocab_size(text_bytes: int) -> int:
    """The number of ids that fits an amount of text, by bits per byte (bench/LOG.md).

    A multiple of 128, as the embedding's rows are: 1,024 for 20 KB, 4,096 for 2.4 MB.
    """
    ids = 1024 * (max(text_bytes, 1) / 20_000) ** 0.29
    return min(max(round(ids / 128) * 128, _SMALLEST), _LARGEST)


def tokenizer_of_source(
    source: DocumentSource,
    vocab_size: int | Literal["auto"],
    out: Path,
    options: PrepareOptions,
    pattern: str = GPT2_PATTERN,
) -> Tokenizer:
    """Learn the tokenizer of the data set `out` from its source: the same each time.

    With --split tail the tail takes no part. If the data set is complete, its own is read.
    Raises: ValueError if the text is too short, or the library that learns is missing.
    """
    if vocab_size != "auto":
        check_vocab_size(vocab_size)
    name = f"{out.name}_tokenizer"
    if (found := _finished(out, name, vocab_size, pattern)) is not None:
        return found
    check_can_learn(pattern)
    phases = Phases()
    held_out: list[bytes] = []
    texts = _training_texts(source, options, held_out)
    text, is_all = _joined(texts)
    phases.end("read")
    wanted = fitting_vocab_size(len(text)) if vocab_size == "auto" else vocab_size
    if vocab_size == "auto" and len(text) < _LEAST_BYTES:
        raise ValueError(
            f"the text has {len(text)} bytes, too few to learn from; give at least a page, "
            f"{_LEAST_BYTES} bytes"
        )
    tokens = learn_merges(text, wanted, pattern, phases.end) if text else []
    if len(tokens) + 1 < wanted and vocab_size != "auto":
        raise ValueError(
            f"the text gives {len(tokens) + 1} ids, fewer than vocab_size={wanted}; "
            "use that many, or more text"
        )
    log.info(
        "tokenizer: %s ids, learned from %s%s of text",
        f"{len(tokens) + 1:,}",
        "" if is_all else "the first ",
        data_size(len(text)),
    )
    tokenizer = Tokenizer(name, pattern, ranks_file(tokens))
    if held_out or not is_all:  # or the text behind the limit
        log_bytes_per_token(tokenizer, chain(held_out, texts), "held-out text")
    else:
        learned = text[: MOST_HELD_OUT // 4].split(NO_TEXT)
        log_bytes_per_token(tokenizer, learned, "text that it has learned from")
    phases.end("measured")
    log.info("tokenizer: %s", phases)
    return tokenizer


def _finished(
    out: Path, name: str, vocab_size: int | Literal["auto"], pattern: str
) -> Tokenizer | None:
    """The tokenizer of the complete data set at `out`, if it was learned for this size."""
    if not (out / MANIFEST_NAME).is_file():
        return None
    entry = read_manifest(out).tokenizer
    if entry.name != name or vocab_size not in ("auto", entry.n_vocab):
        return None
    found = load_tokenizer(out / "tokenizer")
    return found if found.pattern == pattern else None


def _joined(texts: Iterator[bytes]) -> tuple[bytes, bool]:
    """The texts up to a limit, each followed by NO_TEXT; and whether these are all."""
    joined = bytearray()
    for text in texts:
        if len(joined) + len(text) > _MOST_BYTES:
            # `ignore` drops an incomplete character at the cut.
            joined += text[: _MOST_BYTES - len(joined)].decode(errors="ignore").encode()
            return bytes(joined), False
        joined += text + NO_TEXT
    return bytes(joined), True


def _training_texts(
    source: DocumentSource, options: PrepareOptions, held_out: list[bytes]
) -> Iterator[bytes]:
    """The texts to learn from, without tails for validation; `held_out` gets the first of these."""
    texts = islice(_texts(source, options.skip_bad), options.max_documents)
    first = list(islice(texts, FEW_DOCUMENTS))
    if resolved_split(options.split, len(first)) == "tail":
        return _heads(chain(first, texts), options.val_fraction, held_out)
    return chain(first, texts)


def _heads(texts: Iterable[bytes], fraction: float, held_out: list[bytes]) -> Iterator[bytes]:
    held = 0
    for text in texts:
        head, tail = without_tail(text, fraction)
        if held < MOST_HELD_OUT:
            held_out.append(tail)
            held += len(tail)
        yield head


def _texts(source: DocumentSource, skip_bad: int) -> Iterator[bytes]:
    """All texts in order, with an empty one for a bad record, which the preparation counts.

    Raises: ValueError for one that may not be left out.
    """
    for number in range(len(source.identity().files)):
        spans: list[Span] = []
        row = size = 0
        for piece in source.pieces(number, _PIECE_BYTES):
            append_span(spans, Span(number, piece.start, piece.stop, row, piece.rows))
            row, size = row + piece.rows, size + piece.text_bytes
        for record in source.records(Unit(tuple(spans), 0, row, size)):
            if isinstance(record, BadRecord) and not skip_bad:
                raise TooManyBadRecords(record, skip_bad)
            yield b"" if isinstance(record, BadRecord) else record.text
