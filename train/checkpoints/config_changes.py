"""Continuing a run with another configuration: what may change, what must be named, what never can.

Every key of the configuration is of one kind; TABLE is the only place that says which.
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from storage.atomic import read_json
from storage.run_folder import RunFolder

Kind = Literal["free", "named", "never"]

# The longest matching beginning of a key decides. `never` comes with its reason.
TABLE: dict[str, tuple[Kind, str]] = {
    # Which tokens a step sees and what the optimizer does with them stay as they are.
    "data": ("free", ""),  # the folder; its content is compared by fingerprint
    "data_check": ("free", ""),
    "stage": ("free", ""),
    "out": ("free", ""),
    "micro_batch": ("free", ""),
    "compile": ("free", ""),
    "fused_loss": ("free", ""),
    "device": ("free", ""),
    "deterministic": ("free", ""),
    "hang_seconds": ("free", ""),
    "profile": ("free", ""),
    "stop_at": ("free", ""),
    "allow": ("free", ""),
    "eval": ("free", ""),
    "sample": ("free", ""),
    "save": ("free", ""),
    "rehearsal": ("free", ""),
    "guard.every": ("free", ""),
    "guard.box_weights": ("free", ""),
    # Another run from here on, which some want: a longer schedule, a smaller rate after a spike.
    "steps": ("named", ""),
    "batch_tokens": ("named", ""),
    "dtype": ("named", ""),
    "guard": ("named", ""),
    "skip_windows": ("named", ""),
    "residual": ("named", ""),
    "gradient_compression": ("named", ""),
    "optimizer": ("named", ""),
    "schedule": ("named", ""),
    # Later fields are another run too, until someone decides.
    "": ("named", ""),
    "seed": ("never", "it decides which windows were seen"),
    "context_length": ("never", "the data are counted in windows of it"),
    "init": ("never", "a run starts from weights only once"),
    "model": ("never", "the weights have its shape"),
}


@dataclass(frozen=True)
class Change:
    """One key that is not what it was."""

    key: str
    before: Any
    now: Any

    @property
    def rule(self) -> tuple[Kind, str]:
        """Its kind and the reason, from the table."""
        parts = self.key.split(".")
        names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next((TABLE[name] for name in names if name in TABLE), TABLE[""])

    def is_named_by(self, allowed: tuple[str, ...]) -> bool:
        """Whether `--allow` lists it, or a group that it belongs to."""
        return any(self.key == name or self.key.startswith(name + ".") for name in allowed)

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.now}"


def check_same_run(
    folder: RunFolder,
    config: dict[str, Any],
    defaults: dict[str, Any],
    allowed: tuple[str, ...] = (),
) -> list[Change]:
    """What differs from the run that lies in the folder, if all of it may.

    `defaults` stand for keys that the recorded configuration is too old to have.
    Raises: ValueError listing every difference that may not be, with the cure; or if the folder
    holds something else.
    """
    known = flatten(config)
    for name in allowed:
        if not any(Change(key, None, None).is_named_by((name,)) for key in known):
            raise ValueError(f"--allow {name} is no setting; settings are {', '.join(known)}")
    if foreign := folder.unexpected_files():
        raise ValueError(f"--out {folder.path} holds {foreign[0]} but no run; choose another --out")
    if not folder.config.is_file():
        return []
    record = read_json(folder.config)
    before = flatten(defaults) | flatten(record["config"])
    if before["micro_batch"] is None:  # so an older version wrote what it chose itself
        before["micro_batch"] = record["run"]["micro_batch"]
    changes = [
        Change(key, before.get(key), known.get(key))
        for key in sorted(before.keys() | known.keys())
        if before.get(key) != known.get(key)
    ]
    refuse(folder, changes, allowed)
    return changes


def refuse(folder: RunFolder, changes: list[Change], allowed: tuple[str, ...]) -> None:
    """Raises: ValueError if one of the changes may not be, or only if it is named."""
    never = [c for c in changes if c.rule[0] == "never"]
    unnamed = [c for c in changes if c.rule[0] == "named" and not c.is_named_by(allowed)]
    if not never and not unnamed:
        return
    differences = "; ".join(map(str, never + unnamed))
    if never:
        reasons = "; ".join(f"{c.key} can never change ({c.rule[1]})" for c in never)
        cure = f"{reasons}: give the same values to continue it, or choose another --out"
    else:
        names = " ".join(c.key for c in unnamed)
        cure = f"give the same values to continue it, --allow {names} to change them from here on"
        cure += ", or choose another --out"
    raise ValueError(
        f"--out {folder.path} holds a run with another configuration ({differences}); {cure}"
    )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


BITWISE_SETTINGS = (  # of the settings that config.json records
    *("world_size", "micro_batch", "device", "dtype", "attention", "compiled"),
    *("torch", "threads"),
)
log = logging.getLogger(__name__)


def warn_if_not_bitwise_same(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Warn if the start before this one computed by other means, which round otherwise."""
    if not folder.config.is_file():
        return
    before = read_json(folder.config).get("run", {})
    unlike = [
        f"{key} {before[key]} -> {settings[key]}"
        for key in BITWISE_SETTINGS
        if key in before and before[key] != settings[key]
    ]
    if unlike:
        log.warning(
            "the run goes on, but from here its last bits may not be those of an undisturbed one: "
            "%s",
            ", ".join(unlike),
        )
