"""A checkpoint folder as a set of files: the step in its name, its manifest, its removal.

The contents of the files belong to model/checkpoint.py (weights) and to
train/checkpoints/checkpoint.py (the rest of a run).
"""

import re
import shutil
from pathlib import Path
from typing import Any

from storage.atomic import new_file, put_json, read_json, write_json
from storage.digest import file_sha256

MANIFEST = "MANIFEST.json"
_MANIFEST_FORMAT = 1
_PREFIX = "step_"
_WEIGHTS_FILE = "model.safetensors"
STATE_FILE = "state.json"  # of training: its content belongs to train/checkpoints/checkpoint.py
OPTIMIZER_FILE = "optimizer.safetensors"
RESULTS_FILE = "results.json"
_HUGGING_FACE_WEIGHTS = (_WEIGHTS_FILE, f"{_WEIGHTS_FILE}.index.json", "pytorch_model.bin")
_MODEL_FILES = ("model.json", _WEIGHTS_FILE)  # of every checkpoint, an imported model's too
# What a resume needs beside them.
RESUME_FILES = (STATE_FILE, OPTIMIZER_FILE, RESULTS_FILE)
_BEFORE = "before"  # of a manifest's entry: the file that it replaces


class NewerFormat(ValueError):
    """A checkpoint that a newer version wrote: it is sound, but this version cannot read it."""


def step_name(step: int) -> str:
    """The name of the checkpoint, or of another folder, of this step."""
    return f"{_PREFIX}{step:06d}"


def is_step_name(name: str) -> bool:
    """Whether this is the name of a complete checkpoint of some step."""
    digits = name.removeprefix(_PREFIX)
    return re.fullmatch("[0-9]+", digits) is not None and name == step_name(int(digits))


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def checkpoints_in(folder: Path) -> list[Path]:
    """All complete checkpoints in a folder, newest first, damaged ones too."""
    # A save in progress, a broken one and `latest` have other names.
    named = (path for path in folder.glob(f"{_PREFIX}*") if is_step_name(path.name))
    return sorted(filter(Path.is_dir, named), key=step_of, reverse=True)


def free_path(path: Path) -> Path:
    """`path`, or the first of `path.2`, `path.3`, … that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def set_aside(checkpoint: Path) -> Path:
    """Rename a broken checkpoint, so that no resume uses it; returns the new path."""
    broken = free_path(checkpoint.with_name(f"{checkpoint.name}.broken"))
    return checkpoint.rename(broken)


def write_manifest(folder: Path) -> None:
    """Write size and sha256 of every file below `folder` into its MANIFEST.json."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = {str(p.relative_to(folder)): _entry(p) for p in files}
    put_json(folder / MANIFEST, {"format": _MANIFEST_FORMAT, "files": entries})


def _entry(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def replace_results(checkpoint: Path, results: dict[str, Any]) -> None:
    """Replace the results in a checkpoint. Killed at any moment, it leaves one that verifies.

    Meanwhile the manifest accepts the file as it was before, too.
    """
    manifest, name = checkpoint / MANIFEST, RESULTS_FILE
    found = read_json(manifest)
    with new_file(checkpoint / name) as temporary:
        put_json(temporary, results)
        before, now = found["files"][name], _entry(temporary)
        write_json(manifest, found | {"files": found["files"] | {name: now | {_BEFORE: before}}})
    write_json(manifest, found | {"files": found["files"] | {name: now}})


def _check_kind(folder: Path) -> None:
    """Raises: ValueError if the folder holds a model of another kind than a checkpoint."""
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds an adapter (PEFT), not a whole model; merge it into its model first, "
            "with `model.merge_and_unload().save_pretrained(FOLDER)`, then import FOLDER with "
            "model/huggingface.py import"
        )
    ours = any((folder / name).exists() for name in ("model.json", "tokenizer", STATE_FILE))
    if not ours and any((folder / name).is_file() for name in _HUGGING_FACE_WEIGHTS):
        raise ValueError(
            f"{folder} holds a model of Hugging Face, not a checkpoint; import it with "
            f"`python model/huggingface.py import {folder} --out FOLDER` and give FOLDER"
        )


def verify_checkpoint(folder: Path, also: tuple[str, ...] = ()) -> None:
    """Check every file of a checkpoint against its manifest, which must list the model's files.

    `also` are other files that it must list. Raises: ValueError naming the first file that is
    missing or differs.
    """
    seen = manifest_mtime(folder)
    try:
        _verify(folder, also)
    except ValueError:
        if manifest_mtime(folder) == seen:
            raise
        _verify(folder, also)  # its run has just added results


def _verify(folder: Path, also: tuple[str, ...]) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"there is no checkpoint at {folder}; a run's are in its checkpoints/, "
            "once it has saved"
        )
    if not (folder / MANIFEST).is_file():
        _check_kind(folder)
        raise ValueError(
            f"{folder} is not a complete checkpoint (no {MANIFEST}); "
            "give a folder such as runs/gpt2/checkpoints/latest"
        )
    entries = _manifest_entries(folder / MANIFEST)
    for name in (*_MODEL_FILES, *also):
        if all(name != listed for listed, *_ in entries):
            raise ValueError(
                f"{folder / MANIFEST} does not list {name}, so this checkpoint is not complete; "
                "use another one"
            )
    for name, *accepted in entries:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path} is a link that leads outside its folder; do not use it")
        if not path.is_file():
            raise ValueError(f"{path} is missing, so this checkpoint is damaged; use another one")
        if not any(_has_content(path, entry) for entry in accepted):
            raise ValueError(
                f"{path} differs from its digest in {MANIFEST}, so this checkpoint is damaged; "
                "use another one"
            )


def _has_content(path: Path, entry: tuple[int, str]) -> bool:
    size, digest = entry
    return path.stat().st_size == size and file_sha256(path) == digest


def weights_sha256(checkpoint: Path) -> str:
    """The sha256 of the weights by the manifest: it identifies what an evaluation measured.

    Raises: OSError, ValueError or KeyError if the manifest is missing or damaged.
    """
    return read_json(checkpoint / MANIFEST)["files"][_WEIGHTS_FILE]["sha256"]


def manifest_mtime(checkpoint: Path) -> int:
    """When the manifest was written, in nanoseconds; 0 if it is missing.

    It distinguishes a checkpoint from a later one of the same name without reading either.
    """
    try:
        return (checkpoint / MANIFEST).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint."""
    # The manifest first: if the process is killed here, what remains is no complete checkpoint.
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _manifest_entries(manifest: Path) -> list[tuple[Any, ...]]:
    """Every file that a manifest lists: its name, then size and sha256 of each content it may have.

    Raises: ValueError if it is not a manifest, or names a file outside its folder.
    """
    found = read_json(manifest)
    try:
        version = found["format"]
        entries = [(name, *_contents(entry)) for name, entry in found["files"].items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{manifest} is not a manifest ({error!r}); it is damaged") from error
    if version != _MANIFEST_FORMAT:
        # Not NewerFormat: no digest covers this number, so one flipped bit may have changed it.
        raise ValueError(
            f"{manifest} is of format {version}, this version reads {_MANIFEST_FORMAT}; it is "
            "damaged, or update Ratchet"
        )
    # A checkpoint may come from someone else: a manifest must not make us read other files.
    for name, *_ in entries:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{manifest} names {name}, which is outside its folder; do not use it")
    return entries


def _contents(entry: dict[str, Any]) -> list[tuple[int, str]]:
    """Size and sha256 of what a file may hold, by its entry in the manifest."""
    entries = [entry, entry[_BEFORE]] if _BEFORE in entry else [entry]
    return [(e["bytes"], e["sha256"]) for e in entries]
