"""Reads config.json and status.json of a run with checks, and sets damaged files aside.

config.json decides how a run continues, so a damaged one is an error. status.json only reports: a
damaged one counts as missing.
"""

import logging
from pathlib import Path
from typing import Any, Literal, get_args

from storage.atomic import read_json
from storage.checkpoint_folder import free_path
from storage.records.json_fields import check_fields

State = Literal["running", "preempted", "finished", "failed"]
_CONFIG_FIELDS: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "config.seed": int,
    "config.context_length": int,
    "config.batch_tokens": int,
    "config.micro_batch": (int, type(None)),
    "config.eval": dict,
    "config.eval.tasks": list,
    "config.eval.items": (int, type(None)),
    "config.eval.task_file": list,
    "config.eval.hellaswag_file": (str, type(None)),
    "run": dict,
    "run.steps": int,
    "run.micro_batch": int,
    "run.dtype": str,
    "data_fingerprint": str,
    "next_micro_batch": (int, type(None)),
    "branch_steps": (list, type(None)),
}
_AT_LEAST_ONE = ("config.context_length", "config.batch_tokens", "run.steps", "run.micro_batch")
_LISTS_OF_TEXT = ("tasks", "task_file")
_DEEPEST_SETTING = 5
_STATUS_FIELDS: dict[str, type | tuple[type, ...]] = {
    "state": str,
    "step": int,
    "reason": (str, type(None)),
    "attempts": (int, type(None)),
    "started_at_step": (int, type(None)),
}
log = logging.getLogger(__name__)


def cure_of_config(path: Path) -> str:
    """What can be done if a run's config.json is damaged."""
    return (
        f"put back a copy of it; without one, its weights can begin a run in another --out by "
        f"--init {path.parent / 'checkpoints' / 'latest'}"
    )


def checked_config(path: Path) -> dict[str, Any]:
    """The content of a run's config.json.

    Raises: ValueError if the file is not the config.json of a run, with what can be done.
    """
    cure = cure_of_config(path)
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {cure}") from error
    if isinstance(found, dict) and not {"config", "run"} & found.keys():
        raise ValueError(f"{path} is not a run's; give a folder such as runs/gpt2")
    found = check_fields(path, found, _CONFIG_FIELDS, cure)
    for name in _AT_LEAST_ONE:
        part, _, field = name.partition(".")
        if found[part][field] < 1:
            raise ValueError(f"{path} is damaged: {name} is 0; {cure}")
    texts = [text for name in _LISTS_OF_TEXT for text in found["config"]["eval"][name]]
    known = all(isinstance(text, str) for text in texts) and found.get("next_micro_batch") != 0
    if not known or _depth_above(found, _DEEPEST_SETTING):
        raise ValueError(f"{path} is damaged: it has settings that no run writes; {cure}")
    return found


def flat_settings(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys, such as `optimizer.lr`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def checked_status(path: Path) -> dict[str, Any] | None:
    """The content of a run's status.json; None if it is missing, or damaged in any way."""
    try:
        found = check_fields(path, read_json(path), _STATUS_FIELDS, "")
    except (OSError, ValueError):
        return None
    return found if found["state"] in get_args(State) else None


def set_aside_unusable(path: Path, kind: Literal["file", "folder"]) -> None:
    """Rename what stands at `path` if it is no file (or folder), so that a run can write there."""
    if path.exists() and not (path.is_file() if kind == "file" else path.is_dir()):
        _rename(path, f"is not a {kind}")


def set_aside_damaged_status(path: Path) -> None:
    """Rename a status.json that cannot be read, for whoever wants to look at it."""
    if path.exists() and checked_status(path) is None:
        _rename(path, "is damaged")


def _rename(path: Path, why: str) -> None:
    aside = free_path(path.with_name(f"{path.name}.damaged"))
    try:
        path.rename(aside)
        log.warning("%s %s; it is now %s, and the run continues", path, why, aside.name)
    except OSError as error:
        log.error("%s %s and cannot be renamed (%s); the run continues", path, why, error)


def _depth_above(value: Any, limit: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and (
        limit == 0 or any(_depth_above(part, limit - 1) for part in value)
    )
