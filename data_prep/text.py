"""Make a data set from text files, JSON lines, parquet, or Python's own documentation.

    python data_prep/text.py stories.txt more/*.jsonl.zst --out data/stories
    python data_prep/text.py --embedded

In: files, folders or globs. Out: a data set folder for `train/main.py --data`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from data_prep.preparation.console import run_script
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import make
from data_prep.sources.file_source import Source, file_source
from data_prep.sources.python_docs import EmbeddedSource

EMBEDDED_OUT = Path("data/python_docs")


@dataclass(frozen=True)
class TextOptions(PrepareOptions):
    """Tokenize any text into a data set of verified shards."""

    paths: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders or globs: .txt, .jsonl (each also .gz, .zst) and .parquet."""
    source: tuple[str, ...] = ()
    """The same by name."""
    embedded: bool = False
    """Use the documentation inside this Python: about 550 documents, nothing to download."""
    out: Path | None = None
    """The data set's folder; must not exist yet (with --embedded by default data/python_docs)."""
    separator: str = "<|endoftext|>"
    """Stands between the documents of a .txt file; a file without it is one document."""
    split: Literal["hash", "first", "tail"] = "hash"
    """Validation is chosen by a hash of the text (no copy of a document is on both sides), is the
    first documents, or is the tail of a single one."""
    text_key: str = "text"
    """Key (.jsonl) or column (.parquet) of the text."""

    def chosen_source(self) -> Source:
        """The source that the options name."""
        places = (*self.paths, *self.source)
        if self.embedded == bool(places):
            raise ValueError(
                f"embedded={self.embedded} and {len(places)} paths; give either paths or --embedded"
            )
        if self.embedded:
            return EmbeddedSource()
        return file_source(places, self.text_key, self.separator)

    def chosen_out(self) -> Path:
        """The folder to make."""
        if self.out is None and not self.embedded:
            raise ValueError("out is not given; name the data set's folder with --out FOLDER")
        return self.out or EMBEDDED_OUT


def main() -> None:
    """Read the options and prepare."""
    options = tyro.cli(TextOptions, description=__doc__)
    run_script(lambda: make(options.chosen_source(), options.chosen_out(), options))


if __name__ == "__main__":
    main()
