"""The files of a published model: a local folder, or the Hugging Face Hub at one commit."""

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

# OpenAI's four models can be named without their owner.
_OPENAI_MODELS = {
    f"gpt2{size}": f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")
}
_INDEX = "model.safetensors.index.json"
_FILES = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    _INDEX,
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Published:
    """The folder of a published model's files, and their source."""

    folder: Path
    source: str
    """Id on the Hub, or the folder's name."""
    commit: str | None
    """Commit on the Hub; None for a local folder."""

    @property
    def name(self) -> str:
        """The model's name without its owner."""
        return self.source.rpartition("/")[2]


def find_published(source: str, revision: str) -> Published:
    """The files of a local folder, or of an id on the Hub: downloaded and verified.

    Raises: ValueError if there is no such model, or it cannot be downloaded.
    """
    folder = Path(source)
    if folder.is_dir():
        return Published(folder, folder.resolve().name, None)
    repository = _OPENAI_MODELS.get(source, source)
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
                repository, revision=revision, allow_patterns=list(_FILES), force_download=again
            )
        )
    except Exception as error:  # each major version of huggingface_hub raises other classes
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ValueError(
            f"{repository} at revision={revision} is no local folder and cannot be downloaded from "
            f"the Hub ({type(error).__name__}: {reason}); give a folder with config.json and "
            "model.safetensors, or the id of a model on the Hub"
        ) from error


def _is_damaged(blob: Path) -> bool:
    """Whether a file in the Hub's cache differs from the digest that is its name."""
    # A large file (LFS) is named by its sha256, a small one by git's sha1 of the blob.
    if blob.parent.name != "blobs":
        return False
    if len(blob.name) == 64:
        return file_sha256(blob) != blob.name
    content = blob.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob.name


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the files that the index names.

    Raises: ValueError if a file is missing or cannot be read; pickles are never opened.
    """
    names = ["model.safetensors"]
    if (folder / _INDEX).is_file():
        names = sorted(set(read_json(folder / _INDEX)["weight_map"].values()))
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
