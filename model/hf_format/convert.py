"""Import a published model as a checkpoint, and export a checkpoint for transformers."""

import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import load_model, save_model
from model.config import GPTConfig
from model.estimates.parameters import count_parameters
from model.hf_format.card import model_card
from model.hf_format.config import CLASSES, family_of, hf_config, ratchet_config
from model.hf_format.published import Published, find_published, read_weights
from model.hf_format.tokenizer_files import read_hf_tokenizer, write_hf_tokenizer
from model.hf_format.weights import hf_weights, ratchet_model
from storage.atomic import new_folder, read_json, write_json, write_text
from storage.byte_pairs import BytePairs, gpt2_byte_pairs, read_byte_pairs, write_byte_pairs
from storage.checkpoint_folder import verify_checkpoint, write_manifest

log = logging.getLogger("model.huggingface")


def import_model(
    source: str, out: Path, revision: str = "main", tokenizer: Path | None = None
) -> None:
    """Write a published model (an id on the Hub, or a folder) as the checkpoint folder `out`.

    `tokenizer`: folder of its tokenizer in either format; default: the model's own.
    Raises: ValueError if the model cannot be found, or is not a network that Ratchet has.
    """
    _check_absent(out)
    published = find_published(source, revision)
    path = published.folder / "config.json"
    config = ratchet_config(path, _read_hf_config(path))
    pairs = _tokenizer(published, tokenizer, config)
    model = ratchet_model(published.folder, config, read_weights(published.folder))
    origin = {"source": published.source, "commit": published.commit}
    with new_folder(out) as temporary:
        save_model(temporary, model)
        write_byte_pairs(temporary / "tokenizer", pairs)
        write_json(temporary / "results.json", {})
        write_json(temporary / "origin.json", origin)
        write_manifest(temporary)
    _log_summary(config, out)


def _read_hf_config(path: Path) -> dict[str, Any]:
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
    """The given tokenizer, or the model's own.

    Raises: ValueError if there is none, or if it has not as many ids as the model.
    """
    folder = given or published.folder
    gpt2 = gpt2_byte_pairs()
    if (folder / "meta.json").is_file():
        pairs = read_byte_pairs(folder)
    else:
        pairs = read_hf_tokenizer(folder, published.name)
    # Copies of GPT-2's weights often come without a tokenizer.
    if pairs is None and given is None and config.vocab_size == gpt2.n_vocab:
        log.info("%s has no tokenizer: its %d ids are assumed to be GPT-2's", folder, gpt2.n_vocab)
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


def export_model(checkpoint: Path, out: Path) -> None:
    """Write the checkpoint folder as a new folder `out` that transformers can load.

    Raises: ValueError if the checkpoint is damaged, or no class of transformers fits its shape.
    """
    _check_absent(out)
    verify_checkpoint(checkpoint)
    model, pairs = load_model(checkpoint), read_byte_pairs(checkpoint / "tokenizer")
    if pairs.n_vocab != model.config.vocab_size:
        raise ValueError(
            f"{checkpoint} has vocab_size={model.config.vocab_size} and a tokenizer of "
            f"{pairs.n_vocab} ids; use another checkpoint"
        )
    end = pairs.end_of_text
    with new_folder(out) as temporary:
        write_json(temporary / "config.json", hf_config(model.config, end))
        _write_weights(temporary / "model.safetensors", hf_weights(model))
        write_hf_tokenizer(temporary, pairs, model.config.context_length)
        write_json(temporary / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
        write_text(temporary / "README.md", model_card(out.name, checkpoint, model.config))
    _log_summary(model.config, out)


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write the weights as transformers does, with the permissions of config.json."""
    save_file(weights, path, metadata={"format": "pt"})  # some versions refuse a file without it
    shutil.copymode(path.with_name("config.json"), path)


def _check_absent(out: Path) -> None:
    if out.exists():
        raise ValueError(f"--out {out} exists already; move it away or choose another folder")


def _log_summary(config: GPTConfig, out: Path) -> None:
    parameters = count_parameters(config, padded=False).total
    log.info("%s: %s, %s parameters", out, CLASSES[family_of(config)], f"{parameters:,}")
