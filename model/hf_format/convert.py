"""Import a published model as a checkpoint, and export a checkpoint for transformers."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import errors_of_disk, load_model, save_model
from model.config import GPTConfig
from model.estimates.parameters import count_parameters
from model.hf_format.card import model_card
from model.hf_format.config import CLASSES, family_of, hf_config, noted_bias, ratchet_config
from model.hf_format.published import Published, file_in, find_published, read_weights
from model.hf_format.tokenizer_files import write_hf_tokenizer
from model.hf_format.weights import (
    check_finite,
    hf_weights,
    is_untrained,
    ratchet_model,
    without_zero_biases,
)
from storage.atomic import new_folder, read_json, write_json, write_text
from storage.byte_pairs import BytePairs, gpt2_byte_pairs
from storage.checkpoint_folder import verify_checkpoint, write_manifest
from storage.ownership.latest import follow_latest
from storage.vocabularies.any_tokenizer import (
    LIBRARY_FILES,
    read_any_tokenizer,
    read_library_files,
)
from storage.vocabularies.folder import read_byte_pairs, tokenizer_folder_in, write_byte_pairs

# An embedding is padded for speed: GPT-2's 50,257 rows to 50,304, a multiple of 64 and 128; others
# to a multiple of up to 1,024 (128 for each of 8 ranks, as Megatron-LM does).
_GPT2_PADDED_ROWS = 50304
_PADDED_ROWS = 1024

log = logging.getLogger("model.huggingface")


def import_model(
    source: str, out: Path, revision: str = "main", tokenizer: Path | None = None
) -> None:
    """Write a published model (an id on the Hub, or a folder) as the checkpoint folder `out`.

    `tokenizer`: folder of its tokenizer in either format; default: the model's own.
    Raises: ValueError if the model cannot be found, or is not a network that Ratchet has.
    """
    _check_absent(out)
    import_published(find_published(source, revision), out, tokenizer)


def import_published(published: Published, out: Path, tokenizer: Path | None = None) -> None:
    """The same, of a model whose files are here."""
    path = file_in(published.folder, "config.json")
    found = _read_hf_config(path)
    config = ratchet_config(path, found)
    rows = config.vocab_size
    pairs = _tokenizer(published, tokenizer, config)
    weights = read_weights(published.folder)
    config = replace(config, vocab_size=pairs.n_vocab)
    if config.bias and family_of(config) == "gpt2":
        config, weights = _without_unused_biases(config, weights, noted_bias(found))
    model = ratchet_model(published.folder, config, weights, rows)
    origin = {"source": published.source, "commit": published.commit}
    with new_folder(out) as temporary:
        save_model(temporary, model)
        write_byte_pairs(temporary / "tokenizer", pairs)
        write_json(temporary / "results.json", {})
        write_json(temporary / "origin.json", origin)
        write_manifest(temporary)
    _log_summary(config, out)


def _without_unused_biases(
    config: GPTConfig, weights: dict[str, Tensor], noted: bool | None
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Shape and weights without biases, if all are zero and the model was not exported with any.

    Only a network without biases, or one that was never trained, has zeros in all of them.
    """
    with_biases = noted or (noted is None and is_untrained(weights))
    unbiased = None if with_biases else without_zero_biases(config, weights)
    if unbiased is not None:
        if noted is None:
            log.info("all biases are zero: imported as a network without them (--model.bias False)")
        return replace(config, bias=False), unbiased
    if noted is False:
        log.info("exported without biases, it has some now: they are imported")
    return config, weights


def _read_hf_config(path: Path) -> dict[str, Any]:
    if path.with_name("adapter_config.json").is_file():
        raise ValueError(
            f"{path.parent} holds an adapter (PEFT), not a whole model; merge it into its model "
            "first, with `model.merge_and_unload().save_pretrained(FOLDER)`, and import FOLDER"
        )
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
    """The given tokenizer, or the model's own. `config`: with the rows of the model's embedding.

    Raises: ValueError if there is none, or if it does not fit the model.
    """
    folder, rows = given or published.folder, config.vocab_size
    gpt2 = gpt2_byte_pairs()
    named = given is not None and (tokenizer_folder_in(folder) or not folder.is_dir())
    if named or (folder / "meta.json").is_file():
        pairs = read_any_tokenizer(folder)
    else:
        for name in LIBRARY_FILES:
            file_in(folder, name)
        pairs = read_library_files(folder, published.name)
    # Copies of GPT-2's weights often come without a tokenizer. Other families have others.
    is_gpt2s = rows in (gpt2.n_vocab, _GPT2_PADDED_ROWS) and family_of(config) == "gpt2"
    if pairs is None and given is None and is_gpt2s:
        log.info("%s has no tokenizer: its %d rows are assumed to be GPT-2's", folder, rows)
        pairs = gpt2
    if pairs is None:
        raise ValueError(
            f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt, or ours); "
            "give the folder of one with --tokenizer, such as a data set's tokenizer/"
        )
    # Of its own tokenizer the model may have any number of rows more; another one may be a mistake.
    most = rows if given is None else -(-pairs.n_vocab // _PADDED_ROWS) * _PADDED_ROWS
    if not pairs.n_vocab <= rows <= most:
        raise ValueError(
            f"the tokenizer of {folder} has {pairs.n_vocab} ids and the model vocab_size="
            f"{rows}; give the tokenizer that it was trained with as --tokenizer"
        )
    if pairs.n_vocab < rows:
        log.info(
            "the embedding has %d rows and the tokenizer %d ids: rows %d to %d, which are padding "
            "or belong to tokens added later, are left out",
            *(rows, pairs.n_vocab, pairs.n_vocab, rows - 1),
        )
    return pairs


def export_model(checkpoint: Path, out: Path) -> None:
    """Write the checkpoint folder as a new folder `out` that transformers can load.

    Raises: ValueError if the checkpoint is damaged, a weight is not finite, or no class of
    transformers fits its shape.
    """
    _check_absent(out)
    checkpoint = follow_latest(checkpoint)
    verify_checkpoint(checkpoint)
    model, pairs = load_model(checkpoint), read_byte_pairs(checkpoint / "tokenizer")
    if pairs.n_vocab != model.config.vocab_size:
        raise ValueError(
            f"{checkpoint} has vocab_size={model.config.vocab_size} and a tokenizer of "
            f"{pairs.n_vocab} ids; use another checkpoint"
        )
    weights = hf_weights(model)
    for name, value in weights.items():
        check_finite(checkpoint, (name,), value)
    end = pairs.end_of_text
    with new_folder(out) as temporary:
        write_json(temporary / "config.json", hf_config(model.config, end))
        _write_weights(temporary / "model.safetensors", weights)
        write_hf_tokenizer(temporary, pairs, model.config.context_length)
        write_json(temporary / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
        write_text(temporary / "README.md", model_card(out.name, checkpoint, model.config))
    _log_summary(model.config, out)


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write the weights as transformers does, with the permissions of config.json."""
    with errors_of_disk(path):
        save_file(weights, path, metadata={"format": "pt"})  # some versions refuse one without it
    shutil.copymode(path.with_name("config.json"), path)


def _check_absent(out: Path) -> None:
    if out.exists():
        raise ValueError(f"--out {out} exists already; move it away or choose another folder")


def _log_summary(config: GPTConfig, out: Path) -> None:
    parameters = count_parameters(config, padded=False).total
    log.info("%s: %s, %s parameters", out, CLASSES[family_of(config)], f"{parameters:,}")
