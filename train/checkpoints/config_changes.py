"""Rules for resuming a run with a changed configuration.

TABLE gives the rule of every configuration key: "free" to change, "named" (it may change if the
user names it with --allow), or "never".
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch.backends import cpu

from parallel.collectives import all_gather_object
from parallel.ranks import Ranks
from storage.options.as_words import command, flag_words
from storage.records.run_records import flat_settings
from storage.run_folder import RunFolder
from train.schedule import LENGTHS

_Kind = Literal["free", "named", "never"]

_OPTIMIZER_NAME = "optimizer.name"
_MOST_LISTED = 6
_SCRIPT = "train/main.py"
OF_ONE_START = ("allow", "stop_at", "profile")
"""Settings that are not of the run."""
_NOT_TYPED = (*OF_ONE_START, "micro_batch", "out")

# The longest matching prefix of a key decides. The text is the reason of a `never`.
TABLE: dict[str, tuple[_Kind, str]] = {
    # These change neither the tokens of a step nor what the optimizer does with them.
    "data": ("free", ""),  # only the folder's path: its content is compared by fingerprint
    "data_check": ("free", ""),
    "data_recheck_hours": ("free", ""),
    "stage": ("free", ""),
    "out": ("free", ""),
    "micro_batch": ("free", ""),  # affects only rounding
    "compile": ("free", ""),
    "fused_loss": ("free", ""),
    "recompute": ("free", ""),
    "device": ("free", ""),
    "threads": ("free", ""),
    "deterministic": ("free", ""),
    "hang_seconds": ("free", ""),
    "profile": ("free", ""),
    "stop_at": ("free", ""),
    "allow": ("free", ""),
    "eval": ("free", ""),
    "sample": ("free", ""),
    "save": ("free", ""),
    "log": ("free", ""),
    "rehearsal": ("free", ""),
    "guard.every": ("free", ""),
    "guard.box_weights": ("free", ""),
    "guard.band": ("free", ""),
    # These make another run from here on, which can be wanted: a longer schedule, or a smaller
    # learning rate after a spike.
    "steps": ("named", ""),
    "batch_tokens": ("named", ""),
    "dtype": ("named", ""),
    "guard": ("named", ""),
    "skip_windows": ("named", ""),
    "mask_documents": ("named", ""),
    "data_weights_at": ("named", ""),  # and only after the step where the run is
    "data_max_epochs": ("named", ""),
    "residual": ("named", ""),
    "gradient_compression": ("named", ""),
    "reduction": ("named", ""),
    "stop_when_worse": ("named", ""),
    "optimizer": ("named", ""),
    "schedule": ("named", ""),
    # The rule of every field that has no row here, such as one that is added later.
    "": ("named", ""),
    "seed": ("never", "it determines which windows were used so far"),
    "context_length": ("never", "the data position is counted in windows of this length"),
    "init": ("never", "it only sets the weights at the first start"),
    "branch": ("never", "it only says where the run began"),
    "model": ("never", "the weights in the checkpoint have its shape"),
    "model.dropout": ("named", ""),
    "model.vocab_size": (
        "never",
        "--data was made with another tokenizer than the run's: give data of the same tokenizer",
    ),
    _OPTIMIZER_NAME: (
        "never",
        "the state in the checkpoint belongs to the optimizer it began with",
    ),
}


@dataclass(frozen=True)
class Change:
    """One configuration key whose value has changed."""

    key: str
    before: Any
    now: Any

    @property
    def rule(self) -> tuple[_Kind, str]:
        """Kind and reason of the key, from TABLE."""
        parts = self.key.split(".")
        names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((TABLE[name] for name in names if name in TABLE), TABLE[""])

    def is_named_by(self, allowed: tuple[str, ...]) -> bool:
        """Whether `--allow` names the key or a group that contains it."""
        return any(self.key == name or self.key.startswith(name + ".") for name in allowed)

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.now}"


def check_same_run(
    folder: RunFolder,
    config: dict[str, Any],
    defaults: dict[str, Any],
    allowed: tuple[str, ...] = (),
    parent: RunFolder | None = None,
) -> list[Change]:
    """Compare with the configuration of the run in the folder; returns the allowed changes.

    `defaults` are the values of keys that an older version did not record. A new run is compared
    with the one that it continues (`--branch`), its `parent`.
    Raises: ValueError if some change is not allowed (it lists all of them), if --allow names an
    unknown key, or if the folder contains something that is no run.
    """
    known = flat_settings(config)
    # A misspelt name would otherwise allow nothing without a message.
    for name in allowed:
        if not any(Change(key, None, None).is_named_by((name,)) for key in known):
            meant = get_close_matches(name, known, cutoff=0.5) or ["steps", "optimizer.lr"]
            raise ValueError(
                f"--allow {name or repr(name)} is not a setting; give one such as "
                f"{', '.join(meant)} (--help-all lists all)"
            )
    if foreign := folder.unexpected_files():
        raise ValueError(_in_the_way(folder, foreign[0]))
    out, folder = folder.path, parent or folder
    if not folder.config.is_file():
        return []
    record = folder.read_config()
    # Older versions did not record the optimizer's name: there was only one.
    before = flat_settings(defaults) | {_OPTIMIZER_NAME: "adamw"} | flat_settings(record["config"])
    if parent is not None:
        before["branch"] = known["branch"]
    if before["micro_batch"] is None:  # format 1 recorded an automatic choice in "run" only
        before["micro_batch"] = record["run"]["micro_batch"]
    changes = [
        Change(key, before.get(key), known.get(key))
        for key in sorted(before.keys() | known.keys())
        if _differ(key, before.get(key), known.get(key))
    ]
    if before[_OPTIMIZER_NAME] != known[_OPTIMIZER_NAME]:  # then their settings do not compare
        changes = [
            change
            for change in changes
            if change.key == _OPTIMIZER_NAME or not change.key.startswith("optimizer.")
        ]
    run = ["--continue", str(out)]
    if parent is not None:
        run = ["--branch", str(known["branch"]), "--out", str(out)]
    _check_allowed(changes, allowed, run)
    return changes


def _differ(key: str, before: Any, now: Any) -> bool:
    """Whether two values mean different things: for Python, 1 step equals 1.0, the whole run."""
    share_or_steps = key.removeprefix("schedule.") in LENGTHS and before == 1
    return before != now or (share_or_steps and isinstance(before, float) != isinstance(now, float))


def _in_the_way(folder: RunFolder, name: str) -> str:
    """What to say of a folder without config.json that holds something which a run would write."""
    path = folder.path / name
    if path != folder.checkpoints:
        return (
            f"--out {folder.path} holds {name}, which a run would write, but no config.json; move "
            f"{path} away or choose another --out"
        )
    newest = folder.all_checkpoints()[0]
    return (
        f"--out {folder.path} holds {newest.relative_to(folder.path)} but no config.json; to "
        f"continue that run, put its config.json there; to train a new run, choose another --out, "
        f"and give --init {newest} if it is to start from these weights"
    )


def _check_allowed(changes: list[Change], allowed: tuple[str, ...], run: list[str]) -> None:
    """`run` are the words of a command line that take all settings from the run.

    Raises: ValueError if a change is never allowed, or is allowed only when it is named.
    """
    never = [c for c in changes if c.rule[0] == "never"]
    unnamed = [c for c in changes if c.rule[0] == "named" and not c.is_named_by(allowed)]
    if not never and not unnamed:
        return
    differences = _listed("; ", never + unnamed)
    option = "--branch" if run[0] == "--branch" else f"--out {run[1]}"
    if never:
        reasons = dict.fromkeys(c.rule[1] for c in never)
        keys = {reason: [c.key for c in never if c.rule[1] == reason] for reason in reasons}
        cure = "; ".join(
            f"{_listed(', ', names)} can never change ({reason})" for reason, names in keys.items()
        )
        cure += f": `{command([_SCRIPT, *run])}` takes all settings from the run; or choose "
        cure += "another --out"
    else:
        keys = [c for c in changes if c.key not in _NOT_TYPED]
        flags = [word for c in keys for word in flag_words(c.key, c.now)]
        names = ["--allow", *allowed, *(c.key for c in unnamed)]
        cure = f"`{command([_SCRIPT, *run, *flags, *names])}` makes the changes from here on; omit "
        cure += "them to keep the run's settings, or choose another --out"
    raise ValueError(f"{option} holds a run with another configuration ({differences}); {cure}")


def _listed(separator: str, found: Sequence[object]) -> str:
    """The first of what was found, as a text, and how many there are more."""
    first = separator.join(map(str, found[:_MOST_LISTED]))
    more = len(found) - _MOST_LISTED
    return f"{first}{separator}and {more} more" if more > 0 else first


# Settings in config.json that affect rounding. A change of one gives other last bits.
BITWISE_SETTINGS = (
    *("world_size", "micro_batch", "device", "dtype", "attention", "compiled"),
    *("fused_loss", "recompute", "reduction", "torch", "threads", "cpu", "gpu"),
)
log = logging.getLogger(__name__)


def processors(ranks: Ranks) -> dict[str, str]:
    """What computes, by the kinds that all ranks have: GPUs, or the CPU's vector instructions.

    All ranks call this together.
    """
    on_cuda = ranks.device.type == "cuda"
    own = torch.cuda.get_device_name(ranks.device) if on_cuda else cpu.get_cpu_capability()
    return {"gpu" if on_cuda else "cpu": ", ".join(sorted(set(all_gather_object(own))))}


def warn_if_not_bitwise_same(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Warn if hardware or settings that affect rounding have changed since the last start."""
    if not folder.config.is_file():
        return
    before = {"reduction": "ddp"} | folder.read_config()["run"]
    changed = [
        Change(key, before[key], settings[key])
        for key in BITWISE_SETTINGS
        if key in before and key in settings and before[key] != settings[key]
    ]
    in_tree = before["reduction"] == settings.get("reduction") == "tree"
    ranks = [change for change in changed if in_tree and change.key == "world_size"]
    if others := [change for change in changed if change not in ranks]:
        log.warning(
            "the run continues, but from here on its numbers may differ from those of an "
            "undisturbed run in the last bits: %s",
            ", ".join(f"{c.key} {c.before} -> {c.now}" for c in others),
        )
    elif ranks:
        log.info("the number of processes changes (%s): the same bits, by --reduction tree", *ranks)
