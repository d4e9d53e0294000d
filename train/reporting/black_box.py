"""The black box: a record of a step whose update was skipped, for a person and for replay.

It is a folder `runs/NAME/blackbox/step_000123/` with `box.json`, the same as `report.txt`, and the
weights if wanted. Every rank scores its own windows of the step one by one, which takes about as
long as a few steps.
"""

import logging
import socket
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_prep.order.windows import read_windows
from model.checkpoint import save_model
from parallel.collectives import all_gather_object, sum_over_ranks
from storage.atomic import new_folder, write_json, write_text
from storage.checkpoint_folder import free_path
from train.guards.spikes import Skipped
from train.guards.window_by_window import Findings, WindowFinding, layers, score_windows
from train.run import Run

FORMAT = 1
_SCORE_SECONDS = 60.0  # of each rank, while the others wait
_MAX_TEXTS = 64  # decoded windows; the others can be decoded from their numbers
log = logging.getLogger(__name__)


def write_black_box(run: Run, skipped: Skipped, exact: bool) -> Path | None:
    """Score the step's windows on all ranks and write the results on rank 0; None if that failed.

    `exact`: the weights are still those that the step saw. Every rank calls this.
    """
    findings, trouble = Findings(), ""
    try:
        windows = own_windows(run, skipped.first_window)
        dtype, separator = run.learner.dtype, run.separator
        findings = score_windows(run.model, windows, dtype, _SCORE_SECONDS, separator)
    except Exception as error:  # a black box must never hide the fault that it is to explain
        trouble = f"rank {run.ranks.rank}: {type(error).__name__}: {error}"
    told = all_gather_object((trouble, findings.windows, findings.left_out, _place(run)))
    if not any(trouble for trouble, *_ in told):
        for tensor in findings.gradient:
            sum_over_ranks(tensor.div_(run.plan.windows))
    if not run.ranks.is_main:
        return None
    for trouble in filter(None, (trouble for trouble, *_ in told)):
        log.error("step %d could not be examined whole: %s", skipped.step, trouble)
    try:
        return _write(run, skipped, exact, told, findings)
    except Exception as error:
        log.error("the black box of step %d could not be written: %s", skipped.step, error)
        return None


def own_windows(run: Run, first_window: int) -> dict[int, Any]:
    """The windows of a step that this rank took, by number."""
    found: dict[int, Any] = {}
    for own in run.plan.windows_of(run.ranks.rank):
        start = first_window + own.start
        read = read_windows(run.loader.stream, start, len(own), run.plan.context_length)
        found |= dict(enumerate(read, start=start))
    return found


def _place(run: Run) -> str:
    """Host and device of this rank."""
    device = run.ranks.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{socket.gethostname()} {device} ({name})"


def _write(run: Run, skipped: Skipped, exact: bool, told: list[Any], findings: Findings) -> Path:
    box = _contents(run, skipped, exact, told)
    if not box["trouble"]:  # otherwise part of the gradient is missing
        of_layers = layers(run.model, findings.gradient)
        box["layers"] = {name: _plain(asdict(layer)) for name, layer in of_layers.items()}
    with suppress(OSError):  # the shards may be what could not be read
        box["text"] = _texts(run, skipped, [f for _, found, *_ in told for f in found])
    run.folder.check()
    path = free_path(run.folder.path / "blackbox" / f"step_{skipped.step:06d}")
    with new_folder(path) as aside:
        write_json(aside / "box.json", box)
        write_text(aside / "report.txt", _report(box))
        if run.config.guard.box_weights:
            save_model(aside, run.model)
    return path


def _contents(run: Run, skipped: Skipped, exact: bool, told: list[Any]) -> dict[str, Any]:
    """Everything in box.json except layers and text."""
    config, plan = run.config, run.plan
    findings = sorted((f for _, found, *_ in told for f in found), key=lambda f: f.window)
    loss_limit, norm_limit = run.progress.guard.limits(skipped.step)
    return {
        "format": FORMAT,
        "step": skipped.step,
        "kind": "spike" if skipped.is_spike else "not finite",
        "loss": _number(skipped.loss),
        "grad_norm": _number(skipped.norm),
        "loss_limit": _number(loss_limit),
        "grad_norm_limit": _number(norm_limit),
        "weights_after_updates": run.step,
        "weights_are_the_steps": exact,
        "first_window": skipped.first_window,
        "windows": plan.windows,
        "context_length": plan.context_length,
        "micro_batch": plan.micro_batch,
        "world_size": plan.world_size,
        "seed": config.seed,
        "dtype": str(run.learner.dtype).removeprefix("torch."),
        "separator": run.separator,
        "data": run.data.recorded(),
        **_weight_changes(run),
        "data_fingerprint": run.data.fingerprint,
        "ranks": [device for *_, device in told],
        "trouble": [trouble for trouble, *_ in told if trouble],
        "not_examined": [window for _, _, left_out, _ in told for window in left_out],
        "findings": [_plain(asdict(f)) | {"rank": _rank_of(f, run, skipped)} for f in findings],
        "layers": {},
        "text": {},
        "config": config.as_json(run.model.config, plan.micro_batch),
        "lines": list(run.metrics.recent),
    }


def _rank_of(finding: WindowFinding, run: Run, skipped: Skipped) -> int:
    return run.plan.rank_of(finding.window - skipped.first_window)


def _texts(run: Run, skipped: Skipped, findings: list[WindowFinding]) -> dict[str, str]:
    """Text of the micro-batches with values that are not finite, or else of the worst one."""
    plan = run.plan
    wrong = {f.window for f in findings if not f.finite}
    if not wrong:
        wrong = {f.window for f in sorted(findings, key=lambda f: -f.grad_norm)[:1]}
    batches = sorted({(window - skipped.first_window) // plan.micro_batch for window in wrong})
    found: dict[str, str] = {}
    for batch in batches:
        start = skipped.first_window + batch * plan.micro_batch
        read = read_windows(run.loader.stream, start, plan.micro_batch, plan.context_length)
        for number, tokens in enumerate(read, start=start):
            if len(found) < _MAX_TEXTS:
                found[str(number)] = run.tokenizer.decode(tokens.tolist())
    return found


def _weight_changes(run: Run) -> dict[str, Any]:
    """Where the weights of a mixture have changed; nothing if they never did."""
    begun = [start.as_json() for start in run.loader.stream.weight_starts]
    return {"mixture": begun} if begun else {}


def _number(value: float) -> float | str:
    """A number if JSON can hold it; otherwise its name."""
    return value if abs(value) < float("inf") else str(value)


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: _number(v) if isinstance(v, float) else v for k, v in fields.items()}


def _report(box: dict[str, Any]) -> str:
    """The box as text for a person."""
    last = box["first_window"] + box["windows"] - 1
    rows = [
        f"step {box['step']}: {box['kind']}; loss {box['loss']} (limit {box['loss_limit']}), "
        f"gradient norm {box['grad_norm']} (limit {box['grad_norm_limit']})",
        f"windows {box['first_window']} to {last} of {box['context_length']} tokens, {box['data']}",
        f"weights after {box['weights_after_updates']} updates"
        + (", as the step met them" if box["weights_are_the_steps"] else ", newer than the step"),
        *(f"rank {rank}: {device}" for rank, device in enumerate(box["ranks"])),
        *box["trouble"],
        *(["examined without dropout"] if box["config"]["model"].get("dropout") else []),
        "",
        "window      rank  loss          gradient norm  first broken module",
        *(
            f"{f['window']:<10}  {f['rank']:<4}  {f['loss']!s:<12.12}  {f['grad_norm']!s:<13.12}  "
            f"{f['broken_at']}"
            for f in box["findings"]
        ),
        "",
        "layer                           weight norm   not finite  gradient norm",
        *(
            f"{name:<30}  {x['weight_norm']!s:<12.12}  {x['weights_not_finite']:<10}  "
            f"{x['grad_norm']!s:.12}"
            for name, x in box["layers"].items()
        ),
    ]
    for window, text in box["text"].items():
        rows += ["", f"--- window {window} ---", text]
    return "\n".join(rows) + "\n"
