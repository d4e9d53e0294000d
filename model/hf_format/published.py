"""The files of a published model: a local folder, or the Hugging Face Hub at one commit."""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from storage.atomic import read_json
from storage.digest import file_sha256
from storage.option_values import own_path

log = logging.getLogger(__name__)

# OpenAI's four models can be named without their owner.
OPENAI_MODELS = {
    f"gpt2{size}": f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")
}
_ANSWER_SECONDS = 10.0
_INDEX = "model.safetensors.index.json"
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    _INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
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
    try:
        folder = own_path(source)
    except ValueError as error:
        raise ValueError(f"model {source or repr(source)} {error}") from error
    if folder.is_dir():
        return Published(folder, folder.resolve().name, None)
    repository = OPENAI_MODELS.get(source, source)
    for again in (False, True):
        folder = _download(repository, revision, again)
        damaged = [path.name for path in folder.glob("*") if _is_damaged(path.resolve())]
        if not damaged:
            log.info("%s at commit %s", repository, folder.name)
            return Published(folder, repository, folder.name)
        log.warning("%s of %s arrived damaged", ", ".join(damaged), repository)
    raise ValueError(f"{repository} arrived damaged twice; try again over another connection")


def _download(repository: str, revision: str, again: bool) -> Path:
    from huggingface_hub import snapshot_download  # takes half a second, which few runs need

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(MODEL_FILES),
                force_download=again,
            )
        )
    except Exception as error:  # each major version of huggingface_hub raises other classes
        raise ValueError(_not_downloaded(repository, revision, error)) from error


def _not_downloaded(repository: str, revision: str, error: Exception) -> str:
    reason = (str(error).strip() or "no reason given").splitlines()[0].partition(". ")[0]
    return (
        f"{repository} at revision={revision} is no local folder and cannot be downloaded from "
        f"the Hub ({type(error).__name__}: {reason}); check the name and the network, or give a "
        "folder with config.json and model.safetensors"
    )


def commit_on_hub(repository: str) -> str:
    """The commit of a model's main branch. One short request.

    Raises: ValueError if the Hub cannot be asked, or has no such model.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(repository, revision="main", timeout=_ANSWER_SECONDS).sha
    except Exception as error:  # as above
        raise ValueError(_not_downloaded(repository, "main", error)) from error
    if commit is None or not re.fullmatch("[0-9a-f]{40}", commit):
        raise ValueError(f"the Hub names {commit!s:.80} as the commit of {repository}; try again")
    return commit


def _is_damaged(blob: Path) -> bool:
    """Whether a file in the Hub's cache differs from the digest that is its name."""
    # A large file (LFS) is named by its sha256, a small one by git's sha1 of the blob.
    if blob.parent.name != "blobs":
        return False
    if len(blob.name) == 64:
        return file_sha256(blob) != blob.name
    content = blob.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob.name


def is_model_folder(folder: Path) -> bool:
    """Whether a local folder has a file that only models of Hugging Face have."""
    names = ("config.json", "adapter_config.json", _INDEX, "*.safetensors")
    return folder.is_dir() and any(next(folder.glob(name), None) for name in names)


def file_in(folder: Path, name: str) -> Path:
    """The path of a file of a published model, which need not exist.

    Raises: ValueError if the name, or a link of that name, leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ValueError(
            f"{folder} names the file {name!r}, which is outside of it; do not use this model"
        )
    path = folder / name
    # The Hub's cache keeps the files of all commits of a model in one folder, and links to them.
    blobs = folder.resolve().parent.parent / "blobs"
    target = path.resolve()
    if not (target.is_relative_to(folder.resolve()) or target.parent == blobs):
        raise ValueError(
            f"{path} is a link to {target}, outside of its folder; copy that file into the folder "
            "if you trust it"
        )
    return path


def _weight_files(folder: Path) -> list[str]:
    """Names of the files with the weights: those of the index, if there is one."""
    path = file_in(folder, _INDEX)
    if not path.is_file():
        return ["model.safetensors"]
    found = read_json(path)
    files = found.get("weight_map") if isinstance(found, dict) else None
    names = list(files.values()) if isinstance(files, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{path} has no weight_map with the file of each tensor; copy it again, or remove it "
            "if model.safetensors holds all weights"
        )
    return sorted(set(names))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the files that the index names.

    Raises: ValueError if a file is missing, outside of the folder, or cannot be read, or if two
    files hold a tensor of one name; pickles are never opened.
    """
    weights: dict[str, Tensor] = {}
    for path in [file_in(folder, name) for name in _weight_files(folder)]:
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no {path.name}. Pickled weights (pytorch_model.bin) can run code "
                "and are never read: where they are trusted, load them with transformers and "
                "`model.save_pretrained(FOLDER)`, then import FOLDER"
            )
        try:
            found = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}); copy it again") from error
        twice = min(weights.keys() & found.keys(), default=None)
        if twice is not None:
            raise ValueError(
                f"{path} holds {twice}, like another file of {folder}; the files do not belong "
                "together"
            )
        weights |= found
    return weights
