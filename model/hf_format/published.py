"""A published model's files: those of a local folder, or of the Hugging Face Hub at one commit."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from storage.atomic import read_json
from storage.digest import file_sha256

log = logging.getLogger(__name__)

# The four models that need no owner's name.
OPENAIS = {
    f"gpt2{size}": f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")
}
INDEX = "model.safetensors.index.json"
WANTED = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    INDEX,
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Published:
    """Where a published model's files are, and what they are a copy of."""

    folder: Path
    source: str
    """The Hub's id, or the folder's name."""
    commit: str | None
    """The Hub's commit."""

    @property
    def name(self) -> str:
        """The model's name without its owner."""
        return self.source.rpartition("/")[2]


def find_published(source: str, revision: str) -> Published:
    """The files of a folder or a Hub id, downloaded and checked if need be.

    Raises: ValueError if there is no such model, or it cannot be had from here.
    """
    folder = Path(source)
    if folder.is_dir():
        return Published(folder, folder.resolve().name, None)
    repository = OPENAIS.get(source, source)
    for again in (False, True):
        folder = _download(repository, revision, again)
        damaged = [path.name for path in folder.glob("*") if _is_damaged(path.resolve())]
        if not damaged:
            log.info("%s at commit %s", repository, folder.name)
            return Published(folder, repository, folder.name)
        log.warning("%s of %s arrived damaged", ", ".join(damaged), repository)
    raise ValueError(f"{repository} arrived damaged twice; try again over another connection")


def _download(repository: str, revision: str, again: bool) -> Path:
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(WANTED), force_download=again
            )
        )
    except Exception as error:  # the transport's own classes changed with every major version
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ValueError(
            f"{repository} at revision={revision} is no folder here and cannot be had from the Hub "
            f"({type(error).__name__}: {reason}); give a folder with config.json and "
            "model.safetensors, or the id of a model that is there"
        ) from error


def _is_damaged(blob: Path) -> bool:
    """Whether a file of the Hub's cache differs from the digest that is its name."""
    if blob.parent.name != "blobs":
        return False
    if len(blob.name) == 64:
        return file_sha256(blob) != blob.name
    content = blob.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob.name


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the files that its index names.

    Raises: ValueError if there are none, or one cannot be read; pickles are never opened.
    """
    names = ["model.safetensors"]
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    weights: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no {name}. Pickled weights (pytorch_model.bin) can run code and "
                "are never read: where they are trusted, load them with transformers and "
                "`model.save_pretrained(FOLDER)`, then import FOLDER"
            )
        try:
            weights |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}); copy it again") from error
    return weights
