"""Models from Hugging Face to a checkpoint folder of ours, and back.

    python model/huggingface.py import gpt2 --out models/gpt2
    python model/huggingface.py export runs/gpt2/checkpoints/latest --out exports/gpt2

An import serves `eval/main.py --checkpoint` and `train/main.py --init`; an export loads in
transformers without code of ours. Neither imports transformers, and no pickle is ever opened.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from model.hf_format.convert import export_model, import_model
from storage.user_errors import exit_on_user_error


@dataclass(frozen=True)
class ImportOptions:
    """Write a published GPT-2 (or Llama-like) model as a checkpoint folder."""

    source: tyro.conf.Positional[str]
    """gpt2, gpt2-medium, gpt2-large, gpt2-xl, another id on the Hub, or a folder."""
    out: Path
    """The checkpoint folder; must not exist yet."""
    revision: str = "main"
    """Commit, tag or branch on the Hub."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, in our files or Hugging Face's; default: the model's own, or GPT-2's
    for weights without one that have as many ids."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a checkpoint as a folder that transformers loads."""

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint folder, such as runs/gpt2/checkpoints/latest."""
    out: Path
    """The folder to write; must not exist yet."""


def main() -> None:
    """Read the options, then import or export."""
    chosen = tyro.cli(
        Annotated[ImportOptions, tyro.conf.subcommand("import")]
        | Annotated[ExportOptions, tyro.conf.subcommand("export")],  # type: ignore[arg-type]
        description=__doc__,
    )
    # Warnings only of the libraries: the Hub's would log every request.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("model").setLevel(logging.INFO)
    with exit_on_user_error(ValueError, OSError):
        if isinstance(chosen, ImportOptions):
            import_model(chosen.source, chosen.out, chosen.revision, chosen.tokenizer)
        else:
            export_model(chosen.checkpoint, chosen.out)


if __name__ == "__main__":
    main()
