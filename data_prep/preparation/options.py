"""Options of every preparation script; each script adds those of its own source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.preparation.encoder import EncoderChoice
from data_prep.preparation.split import SplitChoice
from data_prep.preparation.work_locks import Part, parse_part
from data_prep.sources.file_digests import DigestFolder
from data_prep.tokenizer import Tokenizer, named_tokenizer
from data_prep.worker_processes import default_workers


@dataclass(frozen=True)
class PrepareOptions:
    """How a source becomes a data set. Everything in `settings` affects its bytes."""

    workers: int | None = None
    """Processes that tokenize. Default: one for each CPU core."""
    shard_tokens: int = 100_000_000
    """Tokens of a train shard, approximately: a shard holds whole documents and file pieces."""
    val_tokens: int | None = None
    """Validation tokens, approximately. Default: 10,000,000, or 1/20 of the source if less."""
    max_documents: int | None = None
    """Use only the first N documents of the source."""
    split: SplitChoice = "hash"
    """How validation documents are chosen.
    hash: by a hash of the text, so that all copies of a document are on one side.
    first: the first documents.
    tail: the end of a single document.
    given: as the source defines them.
    auto: the end of each document if there are fewer than 200, else by hash."""
    val_fraction: float = 0.1
    """With --split tail or auto: the fraction of the text, at its end, that is validation."""
    tokenizer: Path | None = None
    """Folder of a tokenizer made by data_prep/train_tokenizer.py, or of a checkpoint, a run or a
    data set that has one; or a tokenizer.json of Hugging Face (byte-level BPE, as of Llama 3 or
    Qwen) or its folder; or a file of tiktoken, such as cl100k_base.tiktoken. Default: GPT-2's."""
    end_of_text: str | None = None
    """The token of the tokenizer.json that opens each document. Default: <|endoftext|> or what
    else ends a text there."""
    encoder: EncoderChoice = "auto"
    """auto: gigatoken if installed, with a sample compared with tiktoken; same bytes. With a
    tokenizer.json: tiktoken where it gives the same ids, with a sample compared with tokenizers."""
    skip_bad: int = 0
    """Leave out up to N records that cannot be used; they are counted and named in the manifest."""
    check: bool = False
    """Prepare nothing: read the whole source and list every bad record (exit code 1 if any)."""
    part: str | None = None
    """I/N: prepare only part I (from 1) of N, so that N jobs divide the work in one folder."""
    merge: bool = False
    """Make the data set from the finished parts."""

    def __post_init__(self) -> None:
        for name in ("workers", "shard_tokens", "max_documents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.skip_bad < 0:
            raise ValueError(f"skip_bad={self.skip_bad} must be 0 (stop at the first) or more")
        if self.val_tokens is not None and self.val_tokens < 0:
            raise ValueError(f"val_tokens={self.val_tokens} must be 0 (no validation) or more")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction} must be between 0 and 1")
        if self.merge and self.part is not None:
            raise ValueError(f"part={self.part} with merge; give one of them")
        if self.check and (self.merge or self.part is not None):
            raise ValueError("check reads the whole source; leave out --part and --merge")
        self.chosen_part()
        if self.split in ("tail", "auto") and self.val_tokens is not None:
            raise ValueError(
                f"val_tokens={self.val_tokens} has no meaning with split={self.split}; "
                "use --val-fraction"
            )

    def chosen_part(self) -> Part:
        """The part that `part` names; the whole source if it is not given."""
        return Part() if self.part is None else parse_part(self.part)

    def chosen_workers(self) -> int:
        """Processes that tokenize."""
        return self.workers or default_workers()

    def chosen_tokenizer(self) -> Tokenizer:
        """GPT-2's tokenizer, or the one that the options name."""
        return named_tokenizer(self.tokenizer, self.end_of_text)

    def work_folder(self, out: Path) -> Path:
        """Where the data set `out` is prepared."""
        return out.with_name(f"{out.name}.partial")

    def kept_digests(self, out: Path) -> DigestFolder | None:
        """Where the digests of local files are kept; None for a check, which keeps nothing."""
        return None if self.check else DigestFolder(self.work_folder(out), self.part is not None)

    def settings(self) -> dict[str, Any]:
        """The options that affect the bytes, for the manifest; it has its own tokenizer entry."""
        kind = {"split": self.split}
        if self.split in ("tail", "auto"):
            size = {"val_fraction": self.val_fraction}
        else:
            size = {"val_tokens": self.val_tokens}
        limits = {"shard_tokens": self.shard_tokens, "max_documents": self.max_documents}
        return {**limits, **kind, **size}


@dataclass(frozen=True)
class HubOptions(PrepareOptions):
    """How files of the Hugging Face Hub become a data set."""

    revision: str = "main"
    """Commit, tag or branch of the data set on the Hub."""
    keep_source: bool = False
    """Keep downloaded files in OUT.source. Default: delete each when its text is in shards."""

    def download_folder(self, out: Path) -> Path:
        """The folder for downloads, beside the data set."""
        return out.with_name(f"{out.name}.source")
