"""Models from Hugging Face to a checkpoint folder of ours, and back.

    python model/huggingface.py import gpt2 --out models/gpt2
    python model/huggingface.py export runs/gpt2/checkpoints/latest --out exports/gpt2

An import serves `eval/main.py --checkpoint` and `train/main.py --init`; an export loads in
transformers without code of ours. Neither imports transformers, and no pickle is ever opened.
"""

import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import load_model, save_model
from model.cost import count_parameters
from model.gpt import GPTConfig
from model.huggingface_card import model_card
from model.huggingface_config import CLASSES, family_of, our_config, their_config
from model.huggingface_source import Published, find_published, read_weights
from model.huggingface_tokenizer import read_theirs, write_theirs
from model.huggingface_weights import our_model, their_weights
from storage.atomic import new_folder, read_json, write_json, write_text
from storage.byte_pairs import GPT2_PATTERN, BytePairs, read_byte_pairs, write_byte_pairs
from storage.mistakes import told_in_one_sentence
from storage.run_folder import verify_checkpoint, write_manifest

log = logging.getLogger("model.huggingface")

# Data of the project, not code: what GPT-2's weights alone, without their tokenizer, are meant for.
GPT2_RANKS = Path(__file__).parents[1] / "data_prep" / "gpt2.tiktoken"


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


def import_model(options: ImportOptions) -> None:
    """Write the published model to `options.out`.

    Raises: ValueError if it cannot be had, or our network cannot be it.
    """
    _check_absent(options.out)
    published = find_published(options.source, options.revision)
    path = published.folder / "config.json"
    config = our_config(path, _their_config(path))
    pairs = _tokenizer(published, options.tokenizer, config)
    model = our_model(published.folder, config, read_weights(published.folder))
    origin = {"source": published.source, "commit": published.commit}
    with new_folder(options.out) as aside:
        save_model(aside, model)
        write_byte_pairs(aside / "tokenizer", pairs)
        write_json(aside / "results.json", {})
        write_json(aside / "origin.json", origin)
        write_manifest(aside)
    _report(config, options.out)


def _their_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent} holds no config.json; give a folder with config.json and "
            "model.safetensors, or the id of a model on the Hub"
        )
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a model's configuration; copy it again")
    return found


def _tokenizer(published: Published, given: Path | None, config: GPTConfig) -> BytePairs:
    """The tokenizer given, or the model's own, with as many ids as the model."""
    folder = given or published.folder
    gpt2 = BytePairs("gpt2", GPT2_PATTERN, GPT2_RANKS.read_bytes())
    if (folder / "meta.json").is_file():
        pairs = read_byte_pairs(folder)
    else:
        pairs = read_theirs(folder, published.name)
    if pairs is None and given is None and config.vocab_size == gpt2.n_vocab:
        log.info("%s has no tokenizer: its %d ids are taken for GPT-2's", folder, gpt2.n_vocab)
        pairs = gpt2
    if pairs is None:
        raise ValueError(
            f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt, or ours); "
            "give the folder of one with --tokenizer, such as a data set's tokenizer/"
        )
    if pairs.n_vocab != config.vocab_size:
        raise ValueError(
            f"the tokenizer of {folder} has {pairs.n_vocab} ids and the model vocab_size="
            f"{config.vocab_size}; give the tokenizer that it was trained with as --tokenizer"
        )
    return gpt2 if (pairs.pattern, pairs.ranks) == (gpt2.pattern, gpt2.ranks) else pairs


def export_model(options: ExportOptions) -> None:
    """Write the checkpoint to `options.out` as transformers reads it.

    Raises: ValueError if the checkpoint is damaged, or no class there can hold its shape.
    """
    _check_absent(options.out)
    checkpoint = options.checkpoint
    verify_checkpoint(checkpoint)
    model, pairs = load_model(checkpoint), read_byte_pairs(checkpoint / "tokenizer")
    if pairs.n_vocab != model.config.vocab_size:
        raise ValueError(
            f"{checkpoint} has vocab_size={model.config.vocab_size} and a tokenizer of "
            f"{pairs.n_vocab} ids; use another checkpoint"
        )
    end = pairs.end_of_text
    with new_folder(options.out) as aside:
        write_json(aside / "config.json", their_config(model.config, end))
        _write_weights(aside / "model.safetensors", their_weights(model))
        write_theirs(aside, pairs, model.config.context_length)
        write_json(aside / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
        write_text(aside / "README.md", model_card(options.out.name, checkpoint, model.config))
    _report(model.config, options.out)


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """The weights as transformers saves them, readable by whom config.json is."""
    save_file(weights, path, metadata={"format": "pt"})
    shutil.copymode(path.with_name("config.json"), path)


def _check_absent(out: Path) -> None:
    if out.exists():
        raise ValueError(f"--out {out} exists already; move it away or choose another folder")


def _report(config: GPTConfig, out: Path) -> None:
    parameters = count_parameters(config, padded=False).total
    log.info("%s: %s, %s parameters", out, CLASSES[family_of(config)], f"{parameters:,}")


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
    with told_in_one_sentence(ValueError, OSError):
        if isinstance(chosen, ImportOptions):
            import_model(chosen)
        else:
            export_model(chosen)


if __name__ == "__main__":
    main()
