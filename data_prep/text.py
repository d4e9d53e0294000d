"""Make a data set from text, JSON-lines or parquet files, or from Python's documentation.

    python data_prep/text.py stories.txt more/*.jsonl.zst --out data/stories
    python data_prep/text.py stories.txt --vocab-size auto --split auto --out data/stories
    python data_prep/text.py stories.txt more/*.jsonl.zst --check
    python data_prep/text.py s3://bucket/stories/*.jsonl.zst --out data/stories
    python data_prep/text.py --embedded

Input: files, folders or globs, also by URL. Output: a data set folder for `train/main.py --data`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from data_prep.dataset.manifest import Manifest
from data_prep.preparation.cloud.source_copies import CopyOptions, opened_source
from data_prep.preparation.console import run_script
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import run_preparation
from data_prep.sources.file_source import DocumentSource
from data_prep.sources.python_docs import PythonDocsSource
from data_prep.sources.splitting import typed_separator
from data_prep.sources.text_fields import typed_template
from data_prep.vocabulary.merges import check_vocab_size
from data_prep.vocabulary.of_source import tokenizer_of_source
from data_prep.vocabulary.patterns import chosen_pattern
from storage.script_options import parse_options

_EMBEDDED_OUT = Path("data/python_docs")


@dataclass(frozen=True)
class TextOptions(PrepareOptions):
    """Tokenize any text into a data set with checksums."""

    paths: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders or globs: .txt, .jsonl or .json (also .gz, .bz2, .xz, .zst) and .parquet.
    URLs of fsspec too (https, s3, gs, az, hf): their files are first copied to OUT.source."""
    source: tuple[str, ...] = ()
    """The same as an option."""
    embedded: bool = False
    """Use the documentation inside this Python: about 550 documents, without a download."""
    out: Path | None = None
    """Folder of the data set; must not exist yet. Default with --embedded: data/python_docs."""
    separator: str = "<|endoftext|>"
    """Text between the documents of a .txt file; "\\n\\n" is a blank line (also: \\t, \\r, \\\\).
    A file without it is one document."""
    split: Literal["hash", "first", "tail", "auto"] = "hash"
    """How validation documents are chosen.
    hash: by a hash of the text, so that all copies of a document are on one side.
    first: the first documents.
    tail: the end of a single document.
    auto: the end of each document if there are fewer than 200, else by hash."""
    text_key: str = "text"
    """Key (.jsonl) or column (.parquet) that holds the text; a.b is the key b inside a."""
    template: str | None = None
    """Several fields of a record as its text, such as "{question}\\n{answer.text}". All must hold
    text, not numbers or null; {{ and }} are braces."""
    vocab_size: int | Literal["auto"] | None = None
    """Train a tokenizer of N ids on this text, as data_prep/train_tokenizer.py does, and use it.
    auto: a size that fits the amount of text. It learns from the validation documents too, but not
    from the end that --split tail or auto keeps for validation."""
    pattern: str | None = None
    """With --vocab-size, how text is split into words:
    gpt2 (the default), gpt4, qwen2, nanochat, o200k, or a file with a regular expression."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size is not None and self.tokenizer is not None:
            raise ValueError(
                f"vocab_size={self.vocab_size} and tokenizer={self.tokenizer}; give one of them: "
                "a tokenizer has its number of ids (fewer: data_prep/train_tokenizer.py --cut)"
            )
        if isinstance(self.vocab_size, int):
            check_vocab_size(self.vocab_size)

    @contextmanager
    def opened(self) -> Iterator[DocumentSource]:
        """The source that the options name, for as long as the block runs."""
        places = (*self.paths, *self.source)
        if self.embedded == bool(places):
            raise ValueError(
                f"embedded={self.embedded} and {len(places)} paths; give either paths or --embedded"
            )
        if self.embedded:
            yield PythonDocsSource()
            return
        out, separator = self.chosen_out(), typed_separator(self.separator)
        template = typed_template(self.template, self.text_key if self.text_key != "text" else None)
        copying = CopyOptions.of(self, out, self._is_ours)
        reading = (self.text_key, separator, self.kept_digests(out), template)
        with opened_source(places, copying, *reading) as source:
            yield source

    def _is_ours(self, manifest: Manifest) -> bool:
        """Whether the tokenizer of a complete data set has the size that is asked for."""
        return self.vocab_size in (None, "auto", manifest.tokenizer.n_vocab)

    def chosen_out(self) -> Path:
        """The folder of the data set."""
        if self.out is None and not self.embedded and not self.check:
            raise ValueError("out is not given; name the data set's folder with --out FOLDER")
        return self.out or _EMBEDDED_OUT


def _prepare_text(options: TextOptions) -> None:
    if options.pattern is not None and options.vocab_size is None:
        raise ValueError(
            f"pattern={options.pattern} is for a tokenizer that is trained on the text; give "
            "--vocab-size too, or leave it out"
        )
    if options.end_of_text is not None and options.vocab_size is not None:
        raise ValueError(
            f"end_of_text={options.end_of_text} is of a tokenizer that --tokenizer names; omit it"
        )
    pattern = chosen_pattern(options.pattern or "gpt2")
    # Before the source is opened, which may copy it.
    tokenizer = options.chosen_tokenizer() if options.vocab_size is None else None
    with options.opened() as source:
        out = options.chosen_out()
        if options.vocab_size is not None and not options.check:
            tokenizer = tokenizer_of_source(source, options.vocab_size, out, options, pattern)
        run_preparation(source, out, options, tokenizer=tokenizer)


def main() -> None:
    """Read the options and prepare."""
    options = parse_options(TextOptions, description=__doc__)
    run_script(lambda: _prepare_text(options))


if __name__ == "__main__":
    main()
