"""Models of Hugging Face that were imported once, and are found again in the cache folder.

    CACHE/models/openai-community--gpt2-607a30d783df/   of the Hub: named by its commit
    CACHE/models/NAME-3f5a1c09d2e4/                     of a local folder: by what its files contain

A folder that changed, or a new commit, is imported beside the old one.
"""

import hashlib
import logging
import shutil
from pathlib import Path

from model.hf_format.convert import import_published
from model.hf_format.published import (
    MODEL_FILES,
    OPENAI_MODELS,
    Published,
    commit_on_hub,
    find_published,
)
from storage.checkpoint_folder import verify_checkpoint
from storage.digest import file_sha256
from storage.locks import take_lock
from storage.user_errors import reason_of

_MODELS = "models"  # to be changed if the same files become another checkpoint one day
_KEY_DIGITS = 12
# What decides what is imported. An index may name files of weights as it likes.
_DECIDING = (*MODEL_FILES, "*.safetensors", "adapter_config.json", "meta.json", "*.tiktoken")

log = logging.getLogger(__name__)


def imported_folder(folder: Path, cache: Path) -> Path:
    """The checkpoint folder of the model in a local folder of Hugging Face's format.

    Raises: ValueError if it cannot be imported.
    """
    name = folder.resolve().name
    files = sorted({path for pattern in _DECIDING for path in folder.glob(pattern)})
    digests = [f"{path.name} {file_sha256(path)}" for path in files if path.is_file()]
    key = hashlib.sha256("\n".join(digests).encode("utf-8", "surrogateescape")).hexdigest()
    place = cache / _MODELS / f"{name}-{key[:_KEY_DIGITS]}"
    if not _is_imported(place):
        _import(Published(folder, name, None), place)
    log.info("%s: imported as %s", folder, place)
    return place


def imported_from_hub(named: str, cache: Path) -> Path:
    """The checkpoint folder of a model on the Hub, at the newest commit of its main branch.

    Without an answer of the Hub, the commit that was used last.
    Raises: ValueError if there is none, or it cannot be imported.
    """
    repository = OPENAI_MODELS.get(named, named)
    prefix = f"{repository.replace('/', '--')}-"
    try:
        commit, published = commit_on_hub(repository), None
    except ValueError as error:
        known = [p for p in (cache / _MODELS).glob(f"{prefix}*") if _is_imported(p)]
        if known:
            newest = max(known, key=lambda path: path.stat().st_mtime)
            log.warning("%s; %s, which was imported earlier, is used", error, newest)
            return newest
        published = find_published(repository, "main")  # which the Hub's own cache may have
        commit = published.commit or ""
    place = cache / _MODELS / f"{prefix}{commit[:_KEY_DIGITS]}"
    if not _is_imported(place):
        _import(published or find_published(repository, commit), place)
    log.info("%s: imported as %s", named, place)
    return place


def _is_imported(place: Path) -> bool:
    """Whether a whole checkpoint is there."""
    try:
        verify_checkpoint(place)
    except (ValueError, OSError):
        return False
    return True


def _import(published: Published, place: Path) -> None:
    """Import into `place`, unless another process did so meanwhile."""
    source = published.folder if published.commit is None else published.source
    by_hand = f"use `python model/huggingface.py import {source} --out FOLDER` and give FOLDER"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with (place.parent / ".lock").open("a+") as file:
            take_lock(file)
            if not _is_imported(place):
                shutil.rmtree(place, ignore_errors=True)  # it is damaged
                import_published(published, place)
    except OSError as error:
        if _is_imported(place):  # by another process, on a file system without locks
            return
        raise ValueError(
            f"{published.source} cannot be imported into {place.parent} ({reason_of(error)}); set "
            f"RATCHET_CACHE to a folder that has room and may be written, or {by_hand}"
        ) from error
    except ValueError as error:
        if "--tokenizer" not in str(error):
            raise
        raise ValueError(f"{error}; --tokenizer is an option of the import: {by_hand}") from error
