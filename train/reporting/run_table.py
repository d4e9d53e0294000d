"""Several runs as a table: a row for each run, in blocks as wide as the terminal."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from storage.terminal.printable import printable
from storage.terminal.quantities import short
from storage.terminal.short_times import short_time
from train.reporting.run_summary import RunSummary, Score

_NONE = "-"
_GAP = "  "
_LONGEST_NAME = 30


@dataclass(frozen=True)
class _Column:
    """One column of the table."""

    title: str
    value: Callable[[RunSummary], Any]
    """What the column shows of a run; None if that is not known."""
    text: Callable[[Any], str] = str
    usual: bool = True
    """Whether it is shown without --all."""
    folds: bool = True
    """Whether it becomes a line above the table if all runs have the same value."""


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _score(score: Score) -> str:
    error = score.standard_error
    return f"{score.value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _steps(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} of {pair[1]:,}"


def score_tags(runs: Sequence[RunSummary], every: bool) -> list[str]:
    """The accuracies to show: of each task the one by length, if it was measured, or every one."""
    tags = sorted({tag for run in runs for tag in run.scores})
    return [tag for tag in tags if every or f"{tag}_norm" not in tags]


def _columns_for(runs: Sequence[RunSummary], every: bool) -> list[_Column]:
    """The columns of a table of these runs; `every`: with those of --all."""
    several = len({run.validation for run in runs}) > 1
    letters = validation_letters(runs)
    found = [
        _Column("state", lambda r: r.state),
        _Column("steps", lambda r: (r.steps_done, r.steps), _steps),
        _Column("tokens", lambda r: r.tokens, short),
        _Column("parameters", lambda r: r.parameters, short),
        _Column("optimizer", lambda r: r.optimizer),
        _Column("rate", lambda r: r.learning_rate, lambda rate: f"{rate:g}"),
        _Column("batch", lambda r: r.batch_tokens, "{:,}".format),
        _Column("seed", lambda r: r.seed),
        _Column("context", lambda r: r.context_length, "{:,}".format, usual=False),
        _Column("ids", lambda r: r.vocab_size, "{:,}".format, usual=False),
        _Column("train loss", lambda r: r.train_loss, _loss, usual=False, folds=False),
        _Column("best val", lambda r: r.best_val_loss, _loss, folds=False),
        _Column("at step", lambda r: r.best_val_step, "{:,}".format, usual=False, folds=False),
        _Column("last val", lambda r: r.last_val_loss, _loss, folds=False),
        _Column("bits/byte", lambda r: r.best_bits_per_byte, _loss, folds=False),
        *((_Column("val", lambda r: letters[r.validation], folds=False),) if several else ()),
        *(
            _Column(tag, lambda r, tag=tag: r.scores.get(tag), _score, folds=False)
            for tag in score_tags(runs, every)
        ),
        _Column("tokens/s", lambda r: r.tokens_per_second, "{:,.0f}".format, folds=False),
        _Column("time", lambda r: r.train_seconds, short_time, folds=False),
        _Column("starts", lambda r: r.starts, usual=False),
        _Column("ranks", lambda r: r.world_size, usual=False),
        _Column("device", lambda r: r.device, usual=False),
        _Column("data", lambda r: r.data, usual=False),
    ]
    return [column for column in found if column.usual or every]


def validation_letters(runs: Sequence[RunSummary]) -> dict[tuple[str, int | None], str]:
    """A letter for each set of validation tokens, in the order of the runs."""
    kinds = dict.fromkeys(run.validation for run in runs)
    return {kind: _letter(number) for number, kind in enumerate(kinds)}


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"A{number}"


def format_runs(runs: Sequence[RunSummary], width: int, every: bool = False) -> str:
    """The table; what is the same in all runs is a sentence above it."""
    same, shown = [], []
    for column in _columns_for(runs, every):
        texts = [_text(column, run) for run in runs]
        if set(texts) == {_NONE}:
            continue
        if column.folds and not every and len(runs) > 1 and len(set(texts)) == 1:
            same.append(f"{column.title} {texts[0]}")
        else:
            shown.append([column.title, *texts])
    names = ["run", *(short_name(run.name) for run in runs)]
    head = f"in all {len(runs)} runs: {', '.join(same)}"
    parts = [fill(head, width, subsequent_indent=_GAP)] if same else []
    return "\n\n".join([*parts, *blocks(names, shown, width)])


def _text(column: _Column, run: RunSummary) -> str:
    value = column.value(run)
    return _NONE if value is None else printable(column.text(value))


def short_name(name: str) -> str:
    """The name of a run in a table: printable, and cut in the middle if it is long."""
    name = printable(name)
    half = _LONGEST_NAME // 2 - 1
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}..{name[-half:]}"


def blocks(names: list[str], columns: list[list[str]], width: int) -> list[str]:
    """Columns of cells as text, as many beside the names as fit in `width`, the others below."""
    first = max(map(len, names))
    found: list[list[tuple[int, list[str]]]] = [[]]
    used = first
    for cells in columns:
        wide = max(map(len, cells))
        if used + len(_GAP) + wide > width and found[-1]:
            found.append([])
            used = first
        found[-1].append((wide, cells))
        used += len(_GAP) + wide
    return [
        "\n".join(
            _GAP.join(
                [f"{name:<{first}}", *(f"{cells[row]:>{wide}}" for wide, cells in block)]
            ).rstrip()
            for row, name in enumerate(names)
        )
        for block in found
    ]


def csv_text(runs: Sequence[RunSummary]) -> str:
    """All figures of all runs as comma-separated values, unrounded; a score has two columns."""
    plain = [key for key, value in runs[0].as_json().items() if not isinstance(value, dict)]
    tags = score_tags(runs, every=True)
    heads = [*plain, *(name for tag in tags for name in (tag, f"{tag}_stderr"))]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heads)
    for run in runs:
        scores = [run.scores.get(tag) for tag in tags]
        pairs = [(None, None) if s is None else (s.value, s.standard_error) for s in scores]
        writer.writerow([*(getattr(run, key) for key in plain), *(v for p in pairs for v in p)])
    return file.getvalue()
