"""Train a byte-level BPE tokenizer that splits text into words as GPT-2, GPT-4 or you say.

    python data_prep/train_tokenizer.py stories.txt --vocab-size 10000 --out tokenizers/own
    python data_prep/train_tokenizer.py stories.txt --pattern gpt4 --out tokenizers/own
    python data_prep/train_tokenizer.py --embedded --vocab-size 4096 --out tokenizers/python_docs
    python data_prep/train_tokenizer.py --cut qwen/tokenizer.json --vocab-size 65536 --out cut

Input: the files that data_prep/text.py reads. Output: a folder for `--tokenizer` of the data
scripts. The same text gives the same tokenizer. Its ids are the 256 bytes, then the merges in
order, then end-of-text. The log says how many bytes a token has in text that is held out.

Training uses gigatoken, and Hugging Face's tokenizers for patterns other than GPT-2's
(`pip install -e '.[fast]'`).
"""

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

from data_prep.preparation.cloud.source_copies import CopyOptions, opened_source
from data_prep.preparation.console import run_script
from data_prep.sources.file_source import FileSource
from data_prep.sources.python_docs import PythonDocsSource
from data_prep.sources.splitting import typed_separator
from data_prep.tokenizer import Tokenizer
from data_prep.vocabulary.cut import cut_tokenizer
from data_prep.vocabulary.measured import (
    MOST_HELD_OUT,
    Phases,
    log_bytes_per_token,
    without_held_out,
)
from data_prep.vocabulary.merges import (
    NO_TEXT,
    check_can_learn,
    check_vocab_size,
    learn_merges,
)
from data_prep.vocabulary.patterns import chosen_pattern
from storage.atomic import new_folder
from storage.byte_pairs import ranks_file
from storage.script_options import parse_options
from storage.system_modules import RESOURCE as resource

log = logging.getLogger("data_prep.train_tokenizer")

_UNIT_BYTES = 1 << 28


@dataclass(frozen=True)
class TokenizerOptions:
    """Train a byte-level BPE tokenizer."""

    paths: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders or globs: .txt, .jsonl or .json (also .gz, .bz2, .xz, .zst) and .parquet.
    URLs of fsspec too (https, s3, gs, az, hf): their files are first copied to OUT.source."""
    vocab_size: int = 10_000
    """Number of ids, including the 256 bytes and end-of-text; above 65,536, tokens take 4 bytes."""
    out: Path = Path("tokenizers/own")
    """Folder of the tokenizer; must not exist yet."""
    pattern: str = "gpt2"
    """How text is split into words, across which nothing is merged:
    gpt2, gpt4 (cl100k_base), qwen2, nanochat, o200k, or a file with a regular expression."""
    held_out: int = 64
    """Every Nth document is not learned from, but measured; of fewer documents, the last Nth of the
    text. 0: learn from all."""
    source: tuple[str, ...] = ()
    """The same as the files, as an option; --data, its old name, works too."""
    embedded: bool = False
    """Train on the documentation inside this Python."""
    cut: Path | None = None
    """Do not train: take the first --vocab-size ids of this tokenizer (what --tokenizer of text.py
    takes), with end-of-text as the last. The log says what that costs in bytes per token of the
    text that is given, or of Python's documentation."""
    end_of_text: str | None = None
    """With --cut: the token of its tokenizer.json that opens each document."""
    max_bytes: int | None = None
    """Train on the first N bytes of text. Default: on all of it."""
    separator: str = "<|endoftext|>"
    """Text between the documents of a .txt file; "\\n\\n" is a blank line."""
    text_key: str = "text"
    """Key (.jsonl) or column (.parquet) that holds the text; a.b is the key b inside a."""

    def __post_init__(self) -> None:
        if self.end_of_text is not None and self.cut is None:
            raise ValueError(
                f"end_of_text={self.end_of_text} is of a tokenizer that --cut names; omit it"
            )
        some_text = bool(self.paths or self.source)
        if self.embedded == some_text and (some_text or self.cut is None):
            raise ValueError(
                "both text and --embedded are given; give one of them"
                if self.embedded
                else "no text is given; name files, folders or globs, such as stories.txt"
            )
        check_vocab_size(self.vocab_size)
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes={self.max_bytes} must be at least 1")
        if self.held_out < 0 or self.held_out == 1:
            raise ValueError(
                f"held_out={self.held_out} must be 0 (learn from all) or a number from 2 on"
            )

    @contextmanager
    def texts(self) -> Iterator[Iterator[bytes]]:
        """The documents that the options name, for as long as the block runs."""
        if self.embedded or (self.cut and not self.paths and not self.source):
            yield PythonDocsSource().texts()
            return
        places, separator = (*self.paths, *self.source), typed_separator(self.separator)
        with opened_source(places, CopyOptions(self.out), self.text_key, separator) as source:
            yield _texts(source)


def train_tokenizer(options: TokenizerOptions) -> Tokenizer:
    """Train or cut and save the tokenizer, and log a summary.

    Raises: ValueError if `out` exists, the pattern is none, the text is too short for the
    vocabulary, or a library is not installed.
    """
    if options.cut is not None:
        if options.pattern != "gpt2":
            raise ValueError(
                f"pattern={options.pattern} cannot be chosen with cut={options.cut}, whose "
                "tokenizer has its own; omit it"
            )
        with options.texts() as texts:
            what = (options.cut, options.end_of_text, options.vocab_size, options.out)
            return cut_tokenizer(*what, texts)
    if options.out.exists():
        raise ValueError(f"{options.out} exists already; choose another --out or move it away")
    pattern = chosen_pattern(options.pattern)
    check_can_learn(pattern)
    phases = Phases()
    held_out: list[bytes] = []
    with options.texts() as every, new_folder(options.out) as folder:
        texts = without_held_out(every, options.held_out, held_out)
        # Inside the unfinished folder, which the next start removes if this process is killed.
        path = folder / "text"
        text_bytes = _write_texts(path, texts, options.max_bytes)
        if options.held_out and not held_out:
            held_out = [_cut_off_end(path, options.held_out)]
        phases.end("read")
        tokens = _learn(path, options.vocab_size, pattern, phases)
        tokenizer = Tokenizer(options.out.name, pattern, ranks_file(tokens))
        _log_summary(tokenizer, tokens)
        if options.held_out:
            log_bytes_per_token(tokenizer, held_out, "held-out text")
        else:
            with path.open("rb") as file:
                learned = file.read(MOST_HELD_OUT).split(NO_TEXT)
            log_bytes_per_token(tokenizer, learned, "text that it has learned from")
        phases.end("measured")
        path.unlink()
        tokenizer.save(folder)
    log.info(
        "%.1f MB of text: %s; peak memory, mapped text included, %d MB; %s",
        *(text_bytes / 1e6, phases, _peak_bytes() / 1e6, options.out),
    )
    return tokenizer


def _texts(source: FileSource) -> Iterator[bytes]:
    for unit in source.plan(_UNIT_BYTES):
        for document in source.documents(unit):
            yield document.text


def _write_texts(path: Path, texts: Iterable[bytes], max_bytes: int | None) -> int:
    """Write all texts to one file, which gigatoken maps into memory; returns their bytes."""
    written = 0
    with path.open("wb") as file:
        for text in texts:
            if max_bytes is not None and written + len(text) > max_bytes:
                # `ignore` drops an incomplete character at the cut.
                cut = text[: max_bytes - written].decode(errors="ignore").encode()
                return written + file.write(cut)
            written += file.write(text)
            file.write(NO_TEXT)
    return written


def _cut_off_end(path: Path, share: int) -> bytes:
    """Cut the last 1/share of a file of texts off, at the end of a line or word, and return it."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - size // share)
        end = file.read()
        marks = [at + 1 for mark in (b" ", b"\n", NO_TEXT) if (at := end.find(mark)) >= 0]
        starts = (at for at, byte in enumerate(end) if byte & 0xC0 != 0x80)  # of characters
        begin = min(marks) if marks else next(starts, len(end))
        file.truncate(size - len(end) + begin)
    return end[begin:].rstrip(NO_TEXT).replace(NO_TEXT, b"\n")


def _learn(path: Path, vocab_size: int, pattern: str, phases: Phases) -> list[bytes]:
    """Learn a vocabulary from the texts of a file: its tokens by id, without end-of-text.

    Raises: ValueError if the text gives fewer than `vocab_size` ids.
    """
    tokens = learn_merges(path, vocab_size, pattern, phases.end)
    if len(tokens) + 1 < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is more than the {len(tokens) + 1} ids that this text gives; "
            f"use that many, or more text"
        )
    return tokens


def _log_summary(tokenizer: Tokenizer, tokens: list[bytes]) -> None:
    longest = max(tokens, key=len)
    log.info(
        "%s: %d ids; the longest is %r, %d bytes",
        *(tokenizer.name, tokenizer.n_vocab, longest.decode(errors="replace"), len(longest)),
    )


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux


def main() -> None:
    """Read the options and train."""
    # Elsewhere --data is a data set, which is why it is --source here.
    words = [re.sub(r"^--data(?==|$)", "--source", word) for word in sys.argv[1:]]
    options = parse_options(TokenizerOptions, words, description=__doc__)
    run_script(lambda: train_tokenizer(options))


if __name__ == "__main__":
    main()
