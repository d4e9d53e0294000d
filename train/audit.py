"""Audit a run by its folder: check its chain of digests, and repeat segments of it.

    python train/audit.py runs/demo [--segments 3] [--steps 50] [--data data/demo]
    torchrun --standalone --nproc_per_node=2 train/audit.py runs/demo

First the records are compared with one another: files, digests of weights and moments, metric
lines, settings, rates. Then segments between kept checkpoints are drawn and trained again from the
data set,
on any number of ranks, and each loss, gradient norm, rate, digest and the state at the end is
compared: bit for bit where machine and ranks are as the run had them, else within a tolerance that
is measured and printed. The run folder is only read. The verdict is Markdown.
Exit code 0: nothing contradicts the records. 1: something does. 2: it cannot be audited.
"""

import logging
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from data_prep.dataset.shards import check_data_set
from data_prep.order.training_data import TrainingData, open_again
from parallel.collectives import broadcast_object, on_main, together
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from storage.atomic import write_text
from storage.option_values import check_at_least, check_output_file
from storage.script_options import parse_options
from storage.terminal.json_output import (
    STANDARD_OUTPUT,
    check_json_target,
    reserve_standard_output,
    write_json_target,
)
from train.auditing.chain import check_chain
from train.auditing.recorded_run import RecordedRun, read_recorded_run, segments_of
from train.auditing.segments import audit_segment, draw_segments, why_no_beginning
from train.auditing.verdict import AuditVerdict, machine_of, notes_on_the_beginning

_SEEDS = 2**31
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Audit a run by its folder."""

    run: tyro.conf.Positional[Path]
    """Run folder, such as runs/demo. It is only read."""
    segments: int = 3
    """How many segments between kept checkpoints are repeated. 0: only the records are compared."""
    seed: int | None = None
    """Random seed of the draw. Default: one that nobody knows before; the verdict names it."""
    steps: int | None = None
    """Repeat at most the first N steps of a segment, whose last state is then not compared."""
    data: tuple[Path, ...] = ()
    """Data set folder; of a mixture those of all sources. Default: as the run names them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to repeat on."""
    out: Path | None = None
    """File for the verdict, as Markdown."""
    json: Path | None = None
    """File for the findings as JSON; - is standard output."""

    def __post_init__(self) -> None:
        check_at_least("segments", self.segments, 0)
        check_at_least("seed", self.seed or 0, 0)
        if self.steps is not None:
            check_at_least("steps", self.steps, 1)
        check_output_file("--out", self.out)
        check_json_target(self.json)


def _data_of(run: RecordedRun, named: tuple[Path, ...], ranks: Ranks) -> TrainingData:
    """The data of a run. Raises: ValueError if they are missing, damaged or others."""
    recorded = run.stretches[-1].config.data
    data = open_again(recorded, named)
    if data.fingerprint != run.record["data_fingerprint"]:
        raise ValueError(
            f"{' '.join(map(str, named or recorded))} is the data set {data.fingerprint[:12]}, but "
            f"{run.folder.path} says that it was trained on "
            f"{run.record['data_fingerprint'][:12]}; name that one with --data"
        )
    for source in data.sources:
        check_data_set(source.data, "cached", (ranks.local_rank, ranks.local_world_size))
    return data


def audit(arguments: Arguments, run: RecordedRun, ranks: Ranks) -> AuditVerdict:
    """Compare the records, and repeat what is drawn. All ranks call this."""
    data = together(lambda: _data_of(run, arguments.data, ranks))
    chain, notes = on_main(lambda: check_chain(run, data))
    candidates = segments_of(run)
    if reason := on_main(lambda: why_no_beginning(run)):
        candidates = [segment for segment in candidates if segment[0] > 0]
        notes = [*notes, reason]
    seed = secrets.randbelow(_SEEDS) if arguments.seed is None else arguments.seed
    seed = broadcast_object(seed)
    found = [
        audit_segment(run, data, ranks, segment, arguments.steps)
        for segment in draw_segments(candidates, arguments.segments, seed)
    ]
    return AuditVerdict(
        run=str(run.folder.path),
        run_id=run.run_id,
        data_fingerprint=data.fingerprint,
        chain=chain,
        segments=found,
        drawable=len(candidates),
        seed=seed,
        notes=[*notes_on_the_beginning(run), *notes],
        machine=machine_of(ranks),
    )


def main() -> None:
    """Read the options, audit, print the verdict."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        reserve_standard_output(arguments.json)
        run = read_recorded_run(arguments.run)
        if not run.checkpoints:
            raise ValueError(
                f"{arguments.run} has no checkpoint with which repeated steps could be compared; "
                "audit a run that has saved one"
            )
        deterministic = run.stretches[-1].config.deterministic
        ranks = start(arguments.device, deterministic=deterministic)
        verdict = audit(arguments, run, ranks)
        if ranks.is_main:
            if arguments.json != STANDARD_OUTPUT:
                sys.stdout.write(verdict.text() + "\n")
            write_json_target(arguments.json, verdict.as_json())
            if arguments.out is not None:
                write_text(arguments.out, verdict.text() + "\n")
    stop()
    if not verdict.holds:
        sys.exit(1)


if __name__ == "__main__":
    main()
