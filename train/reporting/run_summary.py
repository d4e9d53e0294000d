"""What a run has reached, from its records: for tables, pictures and other tools.

Only reads. A run may be in any state, also running, and of any format.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from storage.json_lines import column, is_count, is_number, read_lines, read_thinned_metrics
from storage.records.run_records import flat_settings
from storage.run_folder import RunFolder

_MOST_LINES = 2000  # of metrics that are read: more than a picture has columns of pixels
_MEASURED = (b'"val/', b'/acc"', b'/acc_norm"')  # in the lines of an evaluation
_SMOOTHED_STEPS = 20
_SCORES = ("/acc", "/acc_norm")
_NO_RESULT = ("train/", "speed/", "data/", "guard/", "band/")


@dataclass(frozen=True)
class Curve:
    """A loss (nats per token) over the tokens trained on and over the time of training."""

    tokens: Sequence[float] = field(default_factory=list)
    """Tokens trained on before each point."""
    seconds: Sequence[float] = field(default_factory=list)
    """Seconds of training before each point, as in `RunSummary.train_seconds`."""
    loss: Sequence[float] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """The last result of a task."""

    value: float
    standard_error: float | None
    step: int
    """Updates of the weights that were scored."""


@dataclass(frozen=True)
class RunSummary:
    """One run. None: not recorded, or not reached yet."""

    name: str
    """Name in tables: the end of its path."""
    path: str
    state: str
    """running, finished, preempted or failed, as status.json says; stopped: it says running, but no
    process has the folder's lock, so the run was killed (or this is a copy); unknown: no status."""
    reason: str
    """Why the run ended, if status.json says so."""
    steps_done: int
    steps: int
    """Optimizer steps of the whole run."""
    tokens: int
    """Tokens trained on; a token that was read again in a later epoch counts again."""
    parameters: int | None
    optimizer: str
    learning_rate: float | None
    """The largest of the schedule."""
    batch_tokens: int
    """Tokens of a step over all ranks."""
    context_length: int
    seed: int
    train_loss: float | None
    """Nats per token: mean of the last 20 steps."""
    best_val_loss: float | None
    """Nats per token, over all logits, padding rows too."""
    best_val_step: int | None
    """Updates of the weights with that loss."""
    last_val_loss: float | None
    best_bits_per_byte: float | None
    """Bits per byte of the validation text."""
    last_bits_per_byte: float | None
    scores: dict[str, Score]
    """Accuracies of tasks by tag, such as hellaswag/acc_norm, each 0 to 1."""
    results: dict[str, float]
    """The last value of everything else that was measured, by tag."""
    tokens_per_second: float | None
    """Over all ranks: median over the steps."""
    train_seconds: float
    """Time of all steps that count. Without evaluation, saving, pauses between starts, and steps
    that were done again. In a long record the time of some steps is the median of the others."""
    starts: int | None
    """How often the run was started."""
    data: str
    data_fingerprint: str
    vocab_size: int | None
    """Ids of the tokenizer, without padding rows."""
    val_tokens: int | None
    """Tokens of each validation."""
    world_size: int | None
    device: str
    settings: dict[str, Any]
    """The configuration of its last start, each setting by its dotted name."""
    facts: dict[str, Any]
    """What followed from it on that machine: number type, attention, versions."""
    train_curve: Curve = field(default_factory=Curve, repr=False)
    val_curve: Curve = field(default_factory=Curve, repr=False)
    bits_curve: Curve = field(default_factory=Curve, repr=False)
    """Bits per byte instead of nats per token."""

    @property
    def validation(self) -> tuple[str, int | None]:
        """Losses per token of two runs compare if this is equal: data set and validation tokens."""
        return self.data_fingerprint, self.val_tokens

    def as_json(self) -> dict[str, Any]:
        """All fields but the curves, as JSON values."""
        found = asdict(self)
        return {key: value for key, value in found.items() if not key.endswith("_curve")}


def summarize_run(path: Path, name: str) -> RunSummary:
    """The summary of the run in a folder.

    Raises: ValueError if its config.json is damaged, or no line of its metrics can be read;
    OSError.
    """
    folder = RunFolder(path)
    record = folder.read_config()
    lines = _metric_lines(folder.metrics)
    settings, facts = flat_settings(record["config"]), record["run"]
    status = folder.read_status() or {}
    done = lines[-1]["step"] + ("train/loss" in lines[-1]) if lines else 0
    return RunSummary(
        name=name,
        path=str(path),
        state=_state(folder, status),
        reason=status.get("reason") or "",
        steps_done=max(done, status.get("step", 0)),
        steps=facts["steps"],
        tokens=(_count(lines[-1].get("tokens")) or 0) if lines else 0,
        parameters=_count(facts.get("parameters")),
        optimizer=str(settings.get("optimizer.name", "adamw")),
        learning_rate=_number(settings.get("optimizer.lr")),
        batch_tokens=settings["batch_tokens"],
        context_length=settings["context_length"],
        seed=settings["seed"],
        starts=len(read_lines(folder.starts)) or None,
        data=_places(settings.get("data")),
        data_fingerprint=record["data_fingerprint"],
        vocab_size=_count(settings.get("model.vocab_size")),
        val_tokens=_whole_windows(settings),
        world_size=_count(facts.get("world_size")),
        device=str(facts.get("device", "")),
        settings=settings,
        facts=facts,
        **_measured(folder, lines),
    )


def _metric_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a run; none if it has none yet. Raises: ValueError if all are damaged."""
    lines = read_thinned_metrics(path, _MOST_LINES, _MEASURED)
    if not lines and path.exists() and path.stat().st_size:
        raise ValueError(f"{path} holds no line that can be read; put back a copy of it")
    return lines


def _state(folder: RunFolder, status: dict[str, Any]) -> str:
    state = status.get("state", "unknown")
    return "stopped" if state == "running" and not folder.is_locked() else state


def _whole_windows(settings: dict[str, Any]) -> int | None:
    """The tokens of each validation: only whole windows count."""
    wanted, length = _count(settings.get("eval.val_tokens")), settings["context_length"]
    return None if wanted is None else wanted // length * length


def _measured(folder: RunFolder, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of the summary that follow from what was measured."""
    evaluations = read_lines(folder.evals)
    points, train_seconds = _points(lines)
    validated = lines if column(lines, "val/loss")[0] else _as_in_training(evaluations)
    steps, losses = column(validated, "val/loss")
    bits = column(validated, "val/bits_per_byte")[1]
    best = min(range(len(losses)), key=losses.__getitem__) if losses else None
    train = column(lines, "train/loss")[1]
    speeds = column(lines[1:] or lines, "speed/tokens_per_second")[1]
    results = _last_results([*evaluations, *lines])
    return {
        "train_loss": fmean(train[-_SMOOTHED_STEPS:]) if train else None,
        "best_val_loss": None if best is None else losses[best],
        "best_val_step": None if best is None else steps[best],
        "last_val_loss": losses[-1] if losses else None,
        "best_bits_per_byte": min(bits, default=None),
        "last_bits_per_byte": bits[-1] if bits else None,
        "scores": _scores(results),
        "results": {tag: value for tag, (_, value) in results.items() if "/acc" not in tag},
        "tokens_per_second": median(speeds) if speeds else None,
        "train_seconds": train_seconds,
        "train_curve": _curve(lines, points, "train/loss"),
        "val_curve": _curve(lines, points, "val/loss"),
        "bits_curve": _curve(lines, points, "val/bits_per_byte"),
    }


def _as_in_training(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Evaluations by a watcher with the run's own settings, by step."""
    own = {
        line["step"]: line
        for line in evaluations
        if not line.get("options") and is_count(line.get("step"))
    }
    return [own[step] for step in sorted(own)]


def _points(lines: list[dict[str, Any]]) -> tuple[list[tuple[int, float]], float]:
    """Tokens and seconds of training before the step of each line, and all seconds.

    A step whose line was not read, or does not tell, takes the median.
    """
    usual = column(lines, "speed/step_milliseconds")[1]
    usual_seconds = median(usual) / 1000 if usual else 0.0
    points: list[tuple[int, float]] = []
    step, tokens, seconds = 0, 0, 0.0  # before the next line
    for line in lines:
        missing = line["step"] - step
        own = "train/loss" in line  # the line after the last step has none
        total = _count(line.get("tokens"))
        total = tokens if total is None else total
        seconds += missing * usual_seconds
        tokens += (total - tokens) * missing // (missing + own) if missing + own else 0
        points.append((tokens, seconds))
        if own:
            milliseconds = line.get("speed/step_milliseconds")
            seconds += milliseconds / 1000 if is_number(milliseconds) else usual_seconds
        step, tokens = line["step"] + own, total
    return points, seconds


def _curve(lines: list[dict[str, Any]], points: list[tuple[int, float]], tag: str) -> Curve:
    pairs = zip(lines, points, strict=True)
    found = [(*point, line[tag]) for line, point in pairs if is_number(line.get(tag))]
    tokens, seconds, loss = ([row[i] for row in found] for i in range(3))
    return Curve(tokens, seconds, loss)


def _last_results(lines: list[dict[str, Any]]) -> dict[str, tuple[int, float]]:
    """Step and value of each measured number, at the largest step."""
    found: dict[str, tuple[int, float]] = {}
    for line in lines:
        step = line.get("step")
        for tag, value in line.items():
            if "/" not in tag or tag.startswith(_NO_RESULT) or not is_number(value):
                continue
            if is_count(step) and step >= found.get(tag, (0, 0.0))[0]:
                found[tag] = step, value
    return found


def _scores(results: dict[str, tuple[int, float]]) -> dict[str, Score]:
    return {
        tag: Score(value, results.get(f"{tag}_stderr", (0, None))[1], step)
        for tag, (step, value) in sorted(results.items())
        if tag.endswith(_SCORES)
    }


def _places(data: Any) -> str:
    """The data of a run as `--data` names them."""
    return " ".join(map(str, data)) if isinstance(data, list) else str(data)


def _count(value: Any) -> int | None:
    return value if is_count(value) else None


def _number(value: Any) -> float | None:
    return value if is_number(value) else None
