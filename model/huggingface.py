"""Convert models from Hugging Face to a checkpoint folder of Ratchet, and back.

    python model/huggingface.py import gpt2 --out models/gpt2
    python model/huggingface.py export runs/gpt2 --out exports/gpt2

`eval/main.py --checkpoint` and `train/main.py --init` take an imported model. An exported model
loads in transformers without code of Ratchet. The transformers package is not needed, and no
pickle is ever opened.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from model.checkpoint_source import find_own_checkpoint
from model.hf_format.convert import export_model, import_model
from storage.script_options import parse_options
from storage.terminal.standard_output import tolerate_lost_output
from storage.user_errors import exit_on_user_error


@dataclass(frozen=True)
class ImportOptions:
    """Write a published GPT-2 (or a plain Llama or NanoChat) as a checkpoint folder."""

    source: tyro.conf.Positional[str]
    """gpt2, gpt2-medium, gpt2-large, gpt2-xl, another id on the Hub, or a local folder."""
    out: Path
    """Checkpoint folder to write; must not exist yet."""
    revision: str = "main"
    """Commit, tag or branch on the Hub."""
    tokenizer: Path | None = None
    """Its tokenizer, in any format that `--tokenizer` of data_prep/text.py takes. Default: the
    model's own, or GPT-2's for a model without one whose vocabulary has that size."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a checkpoint as a folder that transformers can load."""

    checkpoint: tyro.conf.Positional[Path]
    """Folder of a run (its newest sound checkpoint) or of a checkpoint."""
    out: Path
    """Folder to write; must not exist yet."""


def main() -> None:
    """Read the command line, then import or export."""
    commands: Any = (
        Annotated[ImportOptions, tyro.conf.subcommand("import")]
        | Annotated[ExportOptions, tyro.conf.subcommand("export")]
    )
    tolerate_lost_output()
    chosen = parse_options(commands, description=__doc__)
    # Only warnings of libraries: huggingface_hub's client logs every request.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    for ours in ("model", "storage"):
        logging.getLogger(ours).setLevel(logging.INFO)
    with exit_on_user_error(ValueError, OSError):
        if isinstance(chosen, ImportOptions):
            import_model(chosen.source, chosen.out, chosen.revision, chosen.tokenizer)
        else:
            export_model(find_own_checkpoint(chosen.checkpoint), chosen.out)


if __name__ == "__main__":
    main()
