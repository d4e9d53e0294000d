"""The checkpoints of an average: sound, of one run, in the order of their steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.averaging.record import AVERAGE_FILE
from model.checkpoint import load_config
from model.config import GPTConfig
from storage.atomic import read_json
from storage.checkpoint_folder import (
    MANIFEST,
    STATE_FILE,
    checkpoints_in,
    verify_checkpoint,
    weights_sha256,
)
from storage.ownership.latest import follow_latest
from storage.ownership.run_identity import identity_in
from storage.run_folder import RunFolder

NEWEST = 5  # checkpoints of a run, if nothing else is said
_TOKENIZER = "tokenizer/"


@dataclass(frozen=True)
class Member:
    """One checkpoint of an average."""

    path: Path
    config: GPTConfig
    weights: str
    """sha256 of its weights."""
    state: dict[str, Any]
    """Its state.json; empty if no run has written it."""

    @property
    def step(self) -> int | None:
        """Updates of these weights; None if no run has written it."""
        return self.state.get("step")


def checkpoints_named(
    named: Sequence[Path], last: int | None, first_step: int | None
) -> list[Path]:
    """The checkpoints that a person names: a run's folder for its own, or each by its folder.

    Of a run: the `last` newest of those from `first_step` on. Raises: ValueError if there is none.
    """
    run = _run_in(named[0]) if len(named) == 1 else None
    if run is None:
        if last is not None or first_step is not None:
            raise ValueError(
                "--last and --from-step choose among the checkpoints of one run; give one run's "
                "folder, or omit them"
            )
        return [_checkpoint_at(path) for path in named]
    found = [path for path in checkpoints_in(run.checkpoints) if _is_from(path, first_step)]
    if not found:
        raise ValueError(
            f"{named[0]} has no checkpoint from step {first_step} on; its newest is "
            f"{checkpoints_in(run.checkpoints)[0].name}"
        )
    if last is not None and last > len(found):
        since = "" if first_step is None else f" from step {first_step} on"
        raise ValueError(
            f"--last {last} is more than the {len(found)} checkpoints of {named[0]}{since}; give "
            "fewer, or train with --save.keep-every N, which keeps more"
        )
    return found[: NEWEST if last is None and first_step is None else last]


def read_members(paths: Sequence[Path], other_runs: bool) -> list[Member]:
    """The checkpoints, verified and compared, in the order of their steps.

    `other_runs`: they may be of several runs. Raises: ValueError naming the first that is damaged,
    named twice, of another run, shape or tokenizer, or if there are fewer than two.
    """
    members: list[Member] = []
    for path in paths:
        verify_checkpoint(path)
        state = read_json(path / STATE_FILE) if (path / STATE_FILE).is_file() else {}
        members.append(Member(path, load_config(path), weights_sha256(path), state))
        _check_fits(members, other_runs)
    if len(members) < 2:
        only = f", {paths[0]}" if paths else ""
        raise ValueError(
            f"an average needs two checkpoints or more, and this is {len(members)}{only}; name "
            "others too, or train with --save.keep-every N, which keeps more"
        )
    if not other_runs:
        members.sort(key=lambda member: member.step or 0)
    return members


def _check_fits(members: Sequence[Member], other_runs: bool) -> None:
    """Raises: ValueError if the last one cannot be averaged with those before it."""
    first, new = members[0], members[-1]
    for other in members[:-1]:
        if other.weights == new.weights:
            same = (
                "is named twice" if other.path == new.path else f"has the weights of {other.path}"
            )
            raise ValueError(f"{new.path} {same}; name each checkpoint once")
    if not other_runs:
        _check_run(first, new)
    own, shape = (_shape(member.config) for member in (first, new))
    if own != shape:
        name = next(name for name in vars(own) if getattr(own, name) != getattr(shape, name))
        raise ValueError(
            f"{new.path} has {name} {getattr(shape, name)}, but {first.path} has "
            f"{getattr(own, name)}; average checkpoints of one shape"
        )
    if _tokenizer_of(first.path) != _tokenizer_of(new.path):
        raise ValueError(
            f"{new.path} has another tokenizer than {first.path}; average checkpoints of one data "
            "set"
        )


def _check_run(first: Member, new: Member) -> None:
    """Raises: ValueError if a checkpoint is of no run, or of another than the first."""
    if not new.state:
        what = "is itself an average" if (new.path / AVERAGE_FILE).is_file() else "is of no run"
        raise ValueError(
            f"{new.path} {what}; give checkpoints of one run, or --allow-other-runs to average "
            "whatever has one shape"
        )
    if difference := identity_in(first.path).difference(new.path):
        raise ValueError(
            f"{new.path} is not of the same run as {first.path} ({difference}); give checkpoints "
            "of one run, or --allow-other-runs"
        )


def _shape(config: GPTConfig) -> GPTConfig:
    """What decides the weights: dropout may change within a run."""
    return replace(config, dropout=0.0)


def _tokenizer_of(checkpoint: Path) -> dict[str, Any]:
    """The files of the tokenizer with their digests, by the manifest."""
    files = read_json(checkpoint / MANIFEST)["files"]
    return {name: entry for name, entry in files.items() if name.startswith(_TOKENIZER)}


def _run_in(named: Path) -> RunFolder | None:
    """The run whose folder, or folder of checkpoints, this is."""
    for path in (named, named.parent):
        run = RunFolder(path)
        if named in (run.path, run.checkpoints) and checkpoints_in(run.checkpoints):
            return run
    return None


def _is_from(path: Path, first_step: int | None) -> bool:
    return first_step is None or int(path.name.rpartition("_")[2]) >= first_step


def _checkpoint_at(named: Path) -> Path:
    """The folder of the one checkpoint that this names, without links. Raises: ValueError."""
    if _run_in(named) is not None:
        raise ValueError(
            f"{named} is the folder of a run; name it alone, for its newest checkpoints, or name "
            f"each checkpoint, such as {named}/checkpoints/step_000500"
        )
    return follow_latest(named).resolve() if named.exists() else named
