"""Compares a run whose processes were killed with an undisturbed run, in Markdown."""

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from storage.digest import file_sha256
from storage.json_lines import column, read_metrics
from storage.records.line_digest import reproducible
from storage.run_folder import RunFolder
from train.recovery.resume_proof.kills import Kill

_STATE_FILES = ("model.safetensors", "optimizer.safetensors")
# Another number of ranks adds the gradients in another order. Fifty steps of a small model were
# within 1.2e-7 (bench/LOG.md); a real error, such as other data, is far above this.
_OTHER_RANKS_TOLERANCE = 1e-3  # relative difference of losses


@dataclass(frozen=True)
class ProofResult:
    """The outcome of one comparison: what was compared, and whether it is as it must be."""

    what: str
    holds: bool
    detail: str


def _entries(lines: list[dict[str, Any]], tag: str) -> tuple[list[int], list[Any]]:
    """Steps and values of the lines that have this tag, whatever the values are."""
    found = [(line["step"], line[tag]) for line in lines if line.get(tag) is not None]
    return [step for step, _ in found], [value for _, value in found]


def compare_exactly(straight: Path, killed: Path, finished: bool = True) -> list[ProofResult]:
    """Compare every metric line and the final state of two run folders, bit for bit.

    If the killed run has not `finished`, only its metric lines so far are compared.
    """
    folders = RunFolder(straight), RunFolder(killed)
    lines = [list(map(reproducible, read_metrics(folder.metrics))) for folder in folders]
    if not finished:
        lines[0] = lines[0][: len(lines[1])]
    found = []
    for tag in ("train/loss", "train/grad_norm", "data/digest", "val/loss"):
        one, two = (_entries(run, tag) for run in lines)
        different = sum(a != b for a, b in zip(one[1], two[1], strict=False))
        holds = one == two
        detail = f"{len(one[1])} values" if holds else f"{different} of {len(one[1])} differ"
        if one[1] or two[1]:
            found.append(ProofResult(f"`{tag}` of every step", holds, detail))
    found.append(ProofResult("every metric line", lines[0] == lines[1], f"{len(lines[0])} lines"))
    for name in _STATE_FILES if finished else ():
        one, two = (file_sha256(folder.checkpoints / "latest" / name) for folder in folders)
        found.append(ProofResult(f"final `{name}`", one == two, f"{one[:12]} / {two[:12]}"))
    return found


def compare_other_ranks(
    straight: Path, other: Path, resumed: list[int], same_bits: bool
) -> list[ProofResult]:
    """Compare with a run that was continued on other numbers of ranks, at the steps `resumed`.

    The data must be the same. Losses may differ by rounding, unless the run promises `same_bits`.
    """
    steps = ", ".join(map(str, resumed))
    found = [ProofResult("resumed, not restarted", min(resumed) > 0, f"at step {steps}")]
    if same_bits:
        found += compare_exactly(straight, other)
    else:
        found += _compare_order(straight, other)
    return [replace(finding, what=f"other ranks: {finding.what}") for finding in found]


def _compare_order(straight: Path, other: Path) -> list[ProofResult]:
    """Compare the data exactly, and the losses within the tolerance."""
    lines = [read_metrics(RunFolder(path).metrics) for path in (straight, other)]
    digests = [_entries(run, "data/digest") for run in lines]
    losses = [column(run, "train/loss")[1] for run in lines]
    worst = max((abs(a - b) / abs(a) for a, b in zip(*losses, strict=False)), default=float("inf"))
    return [
        ProofResult("`data/digest`", digests[0] == digests[1], f"{len(digests[0][1])}"),
        ProofResult("losses", worst <= _OTHER_RANKS_TOLERANCE, f"within {worst:.1e}"),
    ]


def check_kills(kills: list[Kill], wanted: int, survivors: bool) -> list[ProofResult]:
    """Check that all kills happened and that the run resumed from a checkpoint after each.

    With `survivors` (more than one rank) the kill of a single rank must not lose a step.
    """
    restarted = [k for k in kills if k.resumed <= 0]
    of_ranks = [k for k in kills if k.kind == "rank"]
    lost = sum(k.lost for k in of_ranks)
    found = [
        ProofResult("all kills done", len(kills) == wanted, f"{len(kills)} of {wanted}"),
        ProofResult(
            "resumed, never restarted from 0", not restarted, f"{len(restarted)} restarted"
        ),
    ]
    if survivors and of_ranks:
        detail = f"{lost} lost in {len(of_ranks)} kills"
        found.append(ProofResult("a dead rank costs no step", lost == 0, detail))
    return found


def step_milliseconds(folder: Path) -> float:
    """Median time of a step, from a run folder."""
    values = column(read_metrics(RunFolder(folder).metrics), "speed/step_milliseconds")[1]
    return median(values)


def verdict(
    title: str,
    findings: list[ProofResult],
    kills: list[Kill],
    notes: list[str],
    finished: bool = True,
) -> str:
    """The proof as a Markdown text, for example for an issue."""
    holds = all(finding.holds for finding in findings)
    outcome = ("PASSED" if finished else "INTERRUPTED, all held so far") if holds else "FAILED"
    rows = [f"| {f.what} | {'yes' if f.holds else '**NO**'} | {f.detail} |" for f in findings]
    table = [
        f"| {n} | {k.victim}{' in a save' if k.kind == 'save' else ''} | {k.step} | {k.resumed} "
        f"| {k.lost} | {k.seconds:.1f} |"
        for n, k in enumerate(kills, 1)
    ]
    return "\n".join(
        [
            f"### Resume proof: {title}: {outcome}",
            "",
            *(f"* {note}" for note in [*notes, _machine_description()]),
            "",
            "| the same as in the undisturbed run | holds | |",
            "| --- | --- | --- |",
            *rows,
            "",
            "| # | SIGKILL to | steps done | resumed at | repeated | seconds to the next step |",
            "| --- | --- | --- | --- | --- | --- |",
            *table,
        ]
    )


def _machine_description() -> str:
    """Versions of torch and Python, and the devices of this machine."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = f"{gpus} x {torch.cuda.get_device_name(0)}" if gpus else f"CPU, {platform.machine()}"
    return f"torch {torch.__version__}, Python {platform.python_version()}, {device}"
