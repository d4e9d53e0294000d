"""What an audit finds without repeating a step: whether the records of a run fit together."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from data_prep.audit.continuity import gaps_and_overlaps
from data_prep.audit.run_record import read_run
from data_prep.order.training_data import TrainingData
from storage.atomic import read_json
from storage.checkpoint_folder import (
    RESUME_FILES,
    STATE_FILE,
    checkpoints_in,
    step_of,
    verify_checkpoint,
)
from storage.json_lines import is_count, read_lines, read_metrics
from storage.records.line_digest import LineDigest
from train.auditing.recorded_run import RecordedRun
from train.checkpoints.checkpoint import validation_loss_of
from train.checkpoints.run_position import load_position
from train.checkpoints.state_digest import (
    chain_digest,
    deciding_settings,
    position_digest,
    read_digest,
    saved_tensors,
    tensors_digest,
)
from train.recovery.resume_proof.comparison import ProofResult
from train.schedule import learning_rate

_SHOWN = 3
_SAME_RATE = 1e-12  # relative: libraries of other systems may round a cosine otherwise
_Record = Mapping[str, Any]


def check_chain(run: RecordedRun, data: TrainingData) -> tuple[list[ProofResult], list[str]]:
    """What was compared, each with its result, and notes on what cannot be told."""
    records, notes, damaged = _records(run)
    checks: list[tuple[str, int, Callable[[], Iterator[str]]]] = [
        ("weights and moments as their digest", len(records), lambda: _state(records)),
        ("positions as digest and lines say", len(records), lambda: _positions(run, records)),
        ("settings in force at each checkpoint", len(records), lambda: _settings(run, records)),
        ("validation losses as in the lines", len(run.checkpoints), lambda: _results(run)),
        ("metric lines before each checkpoint", len(records), lambda: _lines(run, records)),
        ("each checkpoint names the one before", len(records), lambda: _links(run, records, notes)),
        ("steps and windows without gap or overlap", len(run.lines), lambda: _order(run, data)),
        ("learning rate of every line", len(run.lines), lambda: _rates(run, data)),
    ]  # fmt: skip
    found = [_result("files of checkpoints", len(run.checkpoints), damaged)]
    found += [_result(what, count, list(check())) for what, count, check in checks]
    return found, notes


def _result(what: str, count: int, problems: Sequence[str]) -> ProofResult:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    detail = "; ".join(problems[:_SHOWN]) + more
    if not problems:
        detail = f"{count:,}" if count else "none has one"
    return ProofResult(what, not problems, detail)


def _records(run: RecordedRun) -> tuple[dict[Path, _Record], list[str], list[str]]:
    """The digests of sound checkpoints, notes on those without, and what is damaged."""
    records: dict[Path, _Record] = {}
    notes, damaged = [], []
    without = 0
    for checkpoint in run.checkpoints:
        try:
            verify_checkpoint(checkpoint, RESUME_FILES)
            load_position(checkpoint)
            record = read_digest(checkpoint)
        except (ValueError, OSError) as error:
            damaged.append(str(error))
            continue
        if record is None:
            without = step_of(checkpoint)
        else:
            records[checkpoint] = record
    if without:
        notes.append(
            f"no digest up to step {without}: an older version wrote the checkpoints, so that only "
            "repeating their steps can show anything"
        )
    for path in checkpoints_in(run.folder.checkpoints):
        if foreign := run.folder.why_foreign(path):
            damaged.append(f"{path.name} is not of this run ({foreign})")
    last = step_of(run.checkpoints[-1]) if run.checkpoints else 0
    if later := [step for step in run.lines if step >= last]:
        notes.append(f"steps {min(later)} to {max(later)} are in no checkpoint that is kept")
    return records, notes, damaged


def _state(records: Mapping[Path, _Record]) -> Iterator[str]:
    for checkpoint, record in records.items():
        if tensors_digest(saved_tensors(checkpoint)) != record["tensors"]:
            yield f"{checkpoint.name} holds other weights or moments than its digest says"


def _positions(run: RecordedRun, records: Mapping[Path, _Record]) -> Iterator[str]:
    for checkpoint, record in records.items():
        state = read_json(checkpoint / STATE_FILE)
        own = state.get("step") == record["step"] == step_of(checkpoint)
        if not own or position_digest(state) != record["position"]:
            yield f"{checkpoint.name} is at another position than its digest says"
        copied = step_of(checkpoint) <= run.first_step and run.parent
        if run.run_id and record["run_id"] != run.run_id and not copied:
            yield f"{checkpoint.name} is of the run {record['run_id']}, not {run.run_id}"
        line = run.lines.get(step_of(checkpoint) - 1)
        if line is not None and state.get("next_window") != line.get("windows"):
            yield (
                f"{checkpoint.name} continues at window {state.get('next_window')}, the step "
                f"before it ended before {line.get('windows')}"
            )


def _results(run: RecordedRun) -> Iterator[str]:
    lines = {line["step"]: line.get("val/loss") for line in read_metrics(run.folder.metrics)}
    for checkpoint in run.checkpoints:
        own, there = validation_loss_of(checkpoint), lines.get(step_of(checkpoint))
        if own is not None and there is not None and own != there:
            yield f"{checkpoint.name} has a validation loss of {own}, its line one of {there}"


def _settings(run: RecordedRun, records: Mapping[Path, _Record]) -> Iterator[str]:
    for checkpoint, record in records.items():
        if run.parent and step_of(checkpoint) <= run.first_step:
            continue  # its parent made it
        claimed = deciding_settings(run.stretch_at(step_of(checkpoint) - 1).settings)
        for key in sorted(claimed.keys() & record["settings"].keys()):
            if claimed[key] != record["settings"][key]:
                yield (
                    f"{checkpoint.name} was made with {key}={record['settings'][key]}, the run's "
                    f"records say {claimed[key]}"
                )


def _lines(run: RecordedRun, records: Mapping[Path, _Record]) -> Iterator[str]:
    """Whether the lines give the digests; each checkpoint continues from the one before."""
    before: _Record | None = None
    for checkpoint, record in records.items():
        began, until = record["began"], record["lines_until"]
        digest = LineDigest.begin(began["step"], began["weights"])
        if before is not None and before["began"] == began:
            digest = LineDigest(began, before["lines_until"], before["lines"])
        first = digest.until
        found = [step for step in sorted(run.lines) if first <= step < until]
        for step in found:
            digest.add(run.lines[step])
        if len(found) < until - first:
            gap = next((a for a, b in zip(count(first), found) if a != b), first + len(found))
            yield f"steps without a line: {until - first - len(found)}, the first is step {gap}"
        elif until != record["step"]:
            yield f"{checkpoint.name} covers the lines up to step {until} only"
        elif digest.value != record["lines"]:
            yield f"lines of steps {first} to {until - 1} are not those before {checkpoint.name}"
        before = record


def _links(run: RecordedRun, records: Mapping[Path, _Record], notes: list[str]) -> Iterator[str]:
    """Whether the digest of each checkpoint leads back to the one that is kept before it."""
    lines = read_lines(run.folder.digests)
    known, steps = {}, set()
    for line in lines:
        if chain_digest(line) != line.get("digest") or not isinstance(line.get("previous"), str):
            step = line.get("step")
            yield f"the record of step {step} in digests.jsonl is not as its digest says"
        elif is_count(line.get("step")):
            known[line["digest"]] = line
            steps.add(line["step"])
    before: _Record | None = None
    for checkpoint, record in records.items():
        if chain_digest(record) != record["digest"]:
            yield f"the digests of {checkpoint.name} are not as their own digest says"
        if record["step"] in steps and record["digest"] not in known:
            yield f"digests.jsonl records another checkpoint of step {record['step']}"
        if before is not None and before["began"] == record["began"]:
            yield from _way_back(record, before, known, notes)
        before = record


def _way_back(
    record: _Record, before: _Record, known: Mapping[str, _Record], notes: list[str]
) -> Iterator[str]:
    at: _Record | None = record
    while at is not None and at["previous"] not in ("", before["digest"]):
        following = known.get(at["previous"])
        if following is not None and not before["step"] < following["step"] < at["step"]:
            yield (
                f"step {record['step']} was made from another checkpoint than the kept one of "
                f"step {before['step']}"
            )
            return
        at = following
    if at is None:
        notes.append(
            f"the chain from step {record['step']} back to {before['step']} cannot be followed: "
            "digests.jsonl has lost lines"
        )
    elif at["previous"] == "":
        yield f"the chain from step {record['step']} back to {before['step']} has a beginning"


def _order(run: RecordedRun, data: TrainingData) -> Iterator[str]:
    recorded = read_run(run.folder.path)
    yield from gaps_and_overlaps(
        recorded, recorded.steps_between(run.first_step, None), run.first_step
    )
    for step in recorded.steps:
        own = step.step >= run.first_step
        if own and step.windows != recorded.settings_at(step.step).windows:
            yield f"step {step.step} has {step.windows} windows"
    last = run.stretches[-1].steps_of_run(data)
    if beyond := [step for step in run.lines if step >= last]:
        yield f"steps {beyond[0]} to {beyond[-1]} are beyond the run's {last}"
    newest = step_of(run.checkpoints[-1]) if run.checkpoints else 0
    if run.checkpoints and run.folder.is_finished():
        ended = (run.folder.read_status() or {}).get("step")
        if isinstance(ended, int) and ended < newest:
            yield f"the run says that it finished at step {ended}, its last checkpoint is {newest}"


def _rates(run: RecordedRun, data: TrainingData) -> Iterator[str]:
    for stretch_first, stop, stretch in run.parts(run.first_step, max(run.lines, default=-1) + 1):
        config, steps = stretch.config, stretch.steps_of_run(data)
        for step in range(stretch_first, stop):
            found = run.lines.get(step, {}).get("train/lr")
            wanted = learning_rate(step, steps, config.optimizer.lr, config.schedule)
            if step in run.lines and not (
                isinstance(found, float | int) and math.isclose(found, wanted, rel_tol=_SAME_RATE)
            ):
                yield f"step {step} has rate {found}, the settings give {wanted:.6g}"
