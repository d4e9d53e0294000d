"""What a person names where a checkpoint is wanted, and the checkpoint folder it means.

A checkpoint folder; a link or text file that names one, such as `latest`; the folder of a run, for
its newest sound checkpoint; a model folder of Hugging Face, or an id on the Hub, which is imported
into a cache once. What is on the disk is never looked for on the Hub.
"""

import logging
import os
import re
from difflib import get_close_matches
from pathlib import Path

from model.hf_format.import_cache import imported_folder, imported_from_hub
from model.hf_format.published import OPENAI_MODELS, is_model_folder
from storage.checkpoint_folder import MANIFEST, STATE_FILE, checkpoints_in, verify_checkpoint
from storage.ownership.latest import follow_latest
from storage.run_folder import RunFolder

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_ADDRESS = "https:/huggingface.co/"  # as a path, in which two slashes are one
# Names of folders by which our documentation calls things on the disk.
_OUR_FOLDERS = ("runs", "data", "models", "exports", "checkpoints")
_GIVE = (
    "give the folder of a run or of a checkpoint, a model folder of Hugging Face, or an id of its "
    "Hub such as openai-community/gpt2"
)
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_SHOWN = 3

log = logging.getLogger(__name__)


def find_checkpoint(named: Path, cache: Path) -> Path:
    """The folder of a whole checkpoint that `named` means; models are imported into `cache`.

    Several processes may call it at once. Raises: ValueError with what to give instead.
    """
    if not os.path.lexists(named):
        return imported_from_hub(_hub_id(named), cache)
    found = _own_checkpoint(named)
    if found is None:
        _check_other_formats(named)
        return imported_folder(named, cache)
    return found


def find_own_checkpoint(named: Path) -> Path:
    """The same, but only what Ratchet wrote: a checkpoint, or a run.

    Raises: ValueError if it is none.
    """
    found = _own_checkpoint(named) if named.exists() else None
    if found is None:
        verify_checkpoint(named)  # which says what it is
        return named
    return found


def _own_checkpoint(named: Path) -> Path | None:
    """The whole checkpoint that this means; None if it holds nothing of ours."""
    if not named.exists():
        raise ValueError(f"{named} is a link to nothing; give another path")
    path = _where_links_lead(named)
    if not path.exists():
        raise ValueError(f"{named} names {path.name}, which is not there; give another checkpoint")
    if any((path / name).exists() for name in (MANIFEST, "model.json", STATE_FILE)):
        verify_checkpoint(path)
        return path
    run = RunFolder(path.parent if path.name == RunFolder(path).checkpoints.name else path)
    if checkpoints_in(run.checkpoints):
        return _newest_sound(named, run)
    if _is_run(run):
        raise ValueError(
            f"the run in {named} has no checkpoint yet; wait until it has saved one, or continue it"
        )
    return None


def _is_run(run: RunFolder) -> bool:
    files = (run.checkpoints, run.status, run.metrics, run.starts)
    return any(path.exists() for path in files)


def _where_links_lead(named: Path) -> Path:
    """The folder that `latest`, a link or a text file, names; another path as it is."""
    if named.is_file():
        return follow_latest(named)
    target = named.parent / os.readlink(named) if named.is_symlink() else named
    return target if target.is_dir() else named


def _newest_sound(named: Path, run: RunFolder) -> Path:
    """The newest checkpoint of a run that is whole; the run may be writing meanwhile."""
    why: dict[Path, str] = {}
    while True:
        untried = [path for path in checkpoints_in(run.checkpoints) if path not in why]
        if not untried:
            raise ValueError(
                f"no checkpoint of {named} is whole (the newest: {next(iter(why.values()), '')}); "
                "copy the run again, or train it again"
            )
        newest = untried[0]
        try:
            verify_checkpoint(newest)
        except (ValueError, OSError) as error:
            why[newest] = str(error)
            if newest.is_dir():  # not deleted meanwhile, for a newer one
                log.warning("%s; trying the one before", error)
        else:
            log.info("%s: %s is its newest checkpoint", named, newest.name)
            return newest


def _hub_id(named: Path) -> str:
    """The id on the Hub that something may be which is not on the disk.

    Raises: ValueError if it cannot be one: a mistyped path must not become a question to the Hub.
    """
    text = str(named).removeprefix(_ADDRESS)
    owner = named.parts[0] if named.parts else ""
    is_id = _HUB_ID.fullmatch(text) and owner not in _OUR_FOLDERS and not Path(owner).exists()
    if text in OPENAI_MODELS or is_id:
        return text
    meant = ""
    if named.parent.is_dir():
        names = [path.name for path in named.parent.iterdir()]
        close = get_close_matches(named.name, names, n=1)
        meant = f" (perhaps you meant {named.with_name(close[0])})" if close else ""
    raise ValueError(f"there is no checkpoint at {named}{meant}; {_GIVE}")


def _check_other_formats(path: Path) -> None:
    """Raises: ValueError if this is no model folder of Hugging Face, with what to do."""
    if not path.is_dir():
        raise ValueError(_about_file(path))
    if is_model_folder(path):
        return
    files = sorted(file for file in path.iterdir() if file.is_file())
    for file in files:
        if file.suffix in (".gguf", *_PICKLES):
            raise ValueError(_about_file(file))
    below = (*path.iterdir(), *path.glob("snapshots/*"))  # the Hub's own cache has snapshots/
    inside = [str(folder) for folder in sorted(below) if _may_hold_model(folder)]
    if inside:
        raise ValueError(
            f"{path} holds no model itself; give a folder in it: {', '.join(inside[:_SHOWN])}"
        )
    what = "holds no model" if any(path.iterdir()) else "is an empty folder"
    if _HUB_ID.fullmatch(str(path)) or str(path) in OPENAI_MODELS:
        what += ", and is what this name means while it exists"
    raise ValueError(f"{path} {what}; {_GIVE}")


def _may_hold_model(path: Path) -> bool:
    return is_model_folder(path) or any(
        found.exists() for found in (path / MANIFEST, RunFolder(path).checkpoints)
    )


def _about_file(path: Path) -> str:
    """What to do with a file where a folder is wanted."""
    if path.suffix == ".gguf":
        return (
            f"{path} is a GGUF, rounded for llama.cpp; give the model that it was made of, as a "
            "folder with config.json and model.safetensors, or its id on the Hub"
        )
    if path.suffix == ".safetensors":
        return f"{path} is one file of a model; give its folder, which must hold config.json too"
    if path.suffix in _PICKLES:
        return (
            f"{path} is a pickle, which may run code and is never opened; where you trust it, load "
            "it with its own program, copy the weights into a model of transformers (nanoGPT's "
            "GPT.from_pretrained shows the names), `model.save_pretrained(FOLDER)`, and give FOLDER"
        )
    return f"{path} is a file; {_GIVE}"
