"""Tells the checkpoints of one run from those of others."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.atomic import read_json
from storage.checkpoint_folder import STATE_FILE, step_of

_NO_SHAPE = {"dropout"}  # which may change within a run
RUN_ID = "run_id"  # in config.json, and in the state.json of each checkpoint


def new_run_id() -> str:
    """An identity for a new run: 16 random hexadecimal digits."""
    return secrets.token_hex(8)


def _run_id_of(record: Any) -> str:
    """The identity in a config.json or state.json; empty if an older version wrote it."""
    found = record.get(RUN_ID) if isinstance(record, dict) else None
    return found if isinstance(found, str) else ""


@dataclass(frozen=True)
class RunIdentity:
    """What all checkpoints of a run have in common. None or empty: not known, so not compared."""

    run_id: str
    seed: int | None
    context_length: int | None
    data_fingerprint: str | None
    network: dict[str, Any]
    """The shape of the network, as in model.json."""

    def difference(self, checkpoint: Path) -> str:
        """What shows that a checkpoint is of another run, or not what it is named; else empty.

        A checkpoint that cannot be read shows nothing: whether it is sound is another question.
        """
        state = _read_object(checkpoint / STATE_FILE)
        shape = _part(_read_object(checkpoint / "model.json"), "config")
        if not state:
            return ""
        if state.get("step") != step_of(checkpoint):
            return f"its state is of step {state.get('step')}"
        other = _run_id_of(state)
        if self.run_id and other and other != self.run_id:
            return f"run_id {other}, this run's is {self.run_id}"
        for name in ("seed", "context_length", "data_fingerprint"):
            own, found = getattr(self, name), state.get(name)
            if own is not None and found is not None and own != found:
                return f"{name} {found}, this run's is {own}"
        for name in sorted((self.network.keys() & shape.keys()) - _NO_SHAPE):
            if self.network[name] != shape[name]:
                return f"{name} {shape[name]}, this run's is {self.network[name]}"
        return ""


def identity_of(record: Any) -> RunIdentity:
    """The identity of a run by its config.json."""
    config = _part(record, "config")
    return RunIdentity(
        _run_id_of(record),
        config.get("seed"),
        config.get("context_length"),
        record.get("data_fingerprint") if isinstance(record, dict) else None,
        _part(config, "model"),
    )


def identity_in(checkpoint: Path) -> RunIdentity:
    """The identity of the run that wrote a checkpoint, by its state.json and model.json."""
    state = _read_object(checkpoint / STATE_FILE)
    return RunIdentity(
        _run_id_of(state),
        state.get("seed"),
        state.get("context_length"),
        state.get("data_fingerprint"),
        _part(_read_object(checkpoint / "model.json"), "config"),
    )


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if the file cannot be read or holds none."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _part(value: Any, key: str) -> dict[str, Any]:
    """An object inside an object; an empty one if there is none."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}
