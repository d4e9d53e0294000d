"""Repeat the bad step of a black box window by window, and report whether it is bad again.

    python train/replay.py runs/gpt2/blackbox/step_000123 [--help]

The weights come from the black box, else from the run's last checkpoint before the step.
Exit code 0: the fault is reproduced. 1: it is not (the machine may be faulty, or the weights were
others). 2: the black box, its data or its weights cannot be used.
"""

import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from data_prep.dataset.shards import check_data_set
from data_prep.order.training_data import open_again, recorded_places
from data_prep.order.weights import WeightStart
from data_prep.order.windows import read_windows
from model.checkpoint import load_model
from parallel.ranks import silence_other_ranks, start, user_errors
from storage.atomic import read_json
from storage.checkpoint_folder import step_of, verify_checkpoint
from storage.ownership.latest import follow_latest
from storage.records.json_fields import check_fields
from storage.run_folder import RunFolder
from storage.script_options import parse_options
from train.guards.window_by_window import Findings, layers, score_windows
from train.reporting.black_box import FORMAT

_NOT_REPRODUCED_CODE = 1
_BOX_FIELDS: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "kind": str,
    "loss_limit": (float, str),  # a limit that is not finite is a text
    "grad_norm_limit": (float, str),
    "weights_are_the_steps": bool,
    "first_window": int,
    "windows": int,
    "context_length": int,
    "seed": int,
    "dtype": str,
    "separator": (int, type(None)),  # of --mask-documents; boxes of older versions have none
    "data": (str, list),
    "mixture": (list, type(None)),
    "data_fingerprint": str,
}
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Repeat the bad step of a black box, one window at a time."""

    box: tyro.conf.Positional[Path]
    """Folder of the black box, such as runs/gpt2/blackbox/step_000123."""
    checkpoint: Path | None = None
    """Checkpoint folder whose weights to use instead of those in the black box."""
    data: tuple[Path, ...] = ()
    """Data set folder; of a mixture those of all sources. Default: as the run used them."""
    device: str = "auto"
    """auto, cpu or cuda. Another device shows whether the machine or the data caused the fault."""


def read_box(folder: Path) -> dict[str, Any]:
    """The content of a black box. Raises: ValueError if the folder is not one."""
    path = folder / "box.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a black box (no box.json); give one like runs/x/blackbox/y"
        )
    box = read_json(path)
    if not isinstance(box, dict) or box.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}; use the version that wrote it")
    check_fields(path, box, _BOX_FIELDS, "use another black box")
    if not isinstance(getattr(torch, box["dtype"], None), torch.dtype) or box["windows"] < 1:
        raise ValueError(f"{path} is damaged: no step is of its dtype and windows; use another one")
    for name in ("loss_limit", "grad_norm_limit"):
        try:
            float(box[name])
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {name} is no number; use another one") from error
    return box


def _weights_of(arguments: Arguments, box: dict[str, Any]) -> tuple[Path, str]:
    """The folder to take the weights from, and a description of them.

    Raises: ValueError if there is none.
    """
    folder = arguments.box
    if arguments.checkpoint is not None:
        checkpoint = follow_latest(arguments.checkpoint)
        verify_checkpoint(checkpoint)
        return checkpoint, f"weights of {arguments.checkpoint}"
    if (folder / "model.safetensors").is_file():
        state = "those of the step" if box["weights_are_the_steps"] else "newer than the step"
        return folder, f"weights of the box, {state}"
    checkpoints = RunFolder(folder.resolve().parent.parent).all_checkpoints()
    for checkpoint in (c for c in checkpoints if step_of(c) <= box["step"]):
        verify_checkpoint(checkpoint)
        return checkpoint, f"weights of {checkpoint.name}, before step {box['step']}"
    raise ValueError(
        f"{folder} contains no weights and its run has no checkpoint up to step {box['step']}; "
        "give one with --checkpoint"
    )


def _read_step(arguments: Arguments, box: dict[str, Any]) -> dict[int, np.ndarray]:
    """All windows of the step, by number. Raises: ValueError if the data set is another one."""
    data = open_again(recorded_places(box["data"]), arguments.data)
    if data.fingerprint != box["data_fingerprint"]:
        folders = " ".join(str(source.data.folder) for source in data.sources)
        raise ValueError(f"{folders} is not the run's data set; give the right one with --data")
    for source in data.sources:  # what a damaged shard holds is not what the step read
        check_data_set(source.data, "cached")
    starts = [WeightStart.from_json(start) for start in box.get("mixture") or ()]
    stream = data.stream(box["seed"], starts)
    first, length = box["first_window"], box["context_length"]
    return dict(enumerate(read_windows(stream, first, box["windows"], length), start=first))


def _is_reproduced(box: dict[str, Any], findings: Findings, windows: int) -> bool:
    """Whether these results show the fault that the black box records."""
    if box["kind"] == "not finite":
        return not all(finding.finite for finding in findings.windows)
    # All windows have the same length, so the mean over them is the loss of the step. The condition
    # is negated because comparisons with NaN are false, and NaN must count as reproduced.
    loss = math.fsum(finding.loss for finding in findings.windows) / windows
    norm = float(torch.nn.utils.get_total_norm(findings.gradient)) / windows
    return not (loss <= float(box["loss_limit"]) and norm <= float(box["grad_norm_limit"]))


def replay(arguments: Arguments) -> bool:
    """Run the step again and log each window; returns whether the fault is reproduced."""
    box = read_box(arguments.box)
    windows = _read_step(arguments, box)
    folder, what = _weights_of(arguments, box)
    ranks = start(arguments.device)
    model = load_model(folder, ranks.device)
    log.info("step %d (%s), windows %d to %d, %s, on %s", box["step"], box["kind"], min(windows),
             max(windows), what, ranks.device)  # fmt: skip
    dtype, separator = getattr(torch, box["dtype"]), box.get("separator")
    findings = score_windows(model, windows, dtype, math.inf, separator)
    for f in findings.windows:
        broken = f"  NOT FINITE, first at {f.broken_at}" if f.broken_at else ""
        log.info(
            "window %d  loss %.4f  gradient norm %.4g%s", f.window, f.loss, f.grad_norm, broken
        )
    damaged = [n for n, x in layers(model, findings.gradient).items() if x.weights_not_finite]
    if damaged:
        log.info("weights that are not finite: %s", ", ".join(damaged))
    reproduced = _is_reproduced(box, findings, len(windows))
    log.info("the fault is %s", "reproduced" if reproduced else "NOT reproduced")
    return reproduced


def main() -> None:
    """Read the options and replay."""
    silence_other_ranks()
    with user_errors():
        reproduced = replay(parse_options(Arguments, description=__doc__))
    if not reproduced:
        sys.exit(_NOT_REPRODUCED_CODE)


if __name__ == "__main__":
    main()
