"""The loss curve of a run as a picture: both losses over tokens, steps on a second axis."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.atomic import new_file
from storage.json_lines import column, is_number
from storage.terminal.printable import printable
from storage.terminal.quantities import short
from train.guards.band.area import BandArea
from train.reporting.curves import scale_of_end, smoothed

_TICKS = 6  # of the axis of steps
_MANY_POINTS = 100  # of a training curve: then its line is smoothed, and the points are pale
_RECENT = 20  # steps that the last training loss is the mean of
_PALE_POINTS = 2000
_FEW_POINTS = 60  # of a validation curve, each of which gets a dot

_Piece = list[tuple[float, float]]
"""Points of a curve: tokens and loss."""


def draw_loss_curve(
    lines: list[dict[str, Any]],
    entropy: float,
    path: Path,
    title: str = "",
    areas: Sequence[BandArea] = (),
) -> None:
    """Draw training and validation loss (nats); `entropy` of words alone only if it is in view.

    `areas` are drawn behind: of training and of validation.

    Steps whose loss is not finite are gaps.
    """
    # Costs 0.4 seconds, which every rank would spend at every start.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    train, val = _pieces(lines, "train/loss"), _pieces(lines, "val/loss")
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for area, color in zip(areas, ("C0", "C1"), strict=False):
        tokens, low, high = (list(values) for values in zip(*area.points, strict=True))
        axes.fill_between(tokens, low, high, color=color, alpha=0.2, lw=0, label=area.label)
    if sum(map(len, train)) > _MANY_POINTS:
        for piece in train:
            shown = piece[:: -(-len(piece) // _PALE_POINTS)]
            axes.plot(*_columns(shown), color="C0", linewidth=0.5, alpha=0.3)
        train = list(map(_smoothed, train))
    for pieces, color, label in (
        (train, "C0", _train_label(lines)),
        (val, "C1", _val_label(lines)),
    ):
        for number, piece in enumerate(pieces):
            dots = "o" if len(piece) == 1 or (pieces is val and len(piece) <= _FEW_POINTS) else ""
            name = label if number == 0 else None
            axes.plot(*_columns(piece), color, marker=dots, markersize=4, label=name)
    if val:
        last = val[-1][-1]
        axes.annotate(f"{last[1]:.3f}", last, (0, 6), textcoords="offset points", ha="right")
    if train or val:
        low, high = scale_of_end([(_losses(train), _losses(val))])
        axes.set_ylim(low, high)
        if low < entropy < high:
            axes.axhline(entropy, linestyle="--", color="gray", label="counting words alone")
        axes.legend()
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: _tick(tokens)))
    axes.grid(alpha=0.3)
    _add_steps(axes, lines)
    name = printable(path.absolute().parent.name).replace("$", r"\$")
    axes.set_title(f"{name}\n{title}" if title else name, fontsize=11)
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _tick(tokens: float) -> str:
    return re.sub(r"\.0+(?=\D|$)", "", short(tokens)) if tokens >= 0 else ""


def _pieces(lines: list[dict[str, Any]], tag: str) -> list[_Piece]:
    """The points of a tag, cut where a value is not finite (null in metrics.jsonl)."""
    pieces: list[_Piece] = [[]]
    for line in lines:
        if is_number(line.get(tag)):
            pieces[-1].append((_tokens(line), line[tag]))
        elif tag in line:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _tokens(line: dict[str, Any]) -> float:
    """Tokens trained on before the step of a line; `tokens` includes that step's own."""
    step = line["step"]
    if not is_number(line.get("tokens")):
        return step
    return line["tokens"] * step / (step + 1) if "train/loss" in line else line["tokens"]


def _columns(piece: _Piece) -> tuple[list[float], list[float]]:
    return [tokens for tokens, _ in piece], [loss for _, loss in piece]


def _smoothed(piece: _Piece) -> _Piece:
    positions, means = smoothed([loss for _, loss in piece])
    return [(piece[at][0], mean) for at, mean in zip(positions, means, strict=True)]


def _losses(pieces: list[_Piece]) -> list[float]:
    return [loss for piece in pieces for _, loss in piece]


def _train_label(lines: list[dict[str, Any]]) -> str:
    recent = column(lines, "train/loss")[1][-_RECENT:]
    if not recent:
        return "training"
    of = f"mean of the last {len(recent)} steps" if len(recent) > 1 else "one step"
    return f"training, {sum(recent) / len(recent):.3f} ({of})"


def _val_label(lines: list[dict[str, Any]]) -> str:
    losses, bits = (column(lines, f"val/{name}")[1] for name in ("loss", "bits_per_byte"))
    if not losses:
        return "validation"
    best = f", at best {min(losses):.3f}" if min(losses) < losses[-1] else ""
    in_bits = f" ({bits[-1]:.3f} bits per byte)" if bits else ""
    return f"validation, {losses[-1]:.3f}{in_bits}{best}"


def _add_steps(axes: Any, lines: list[dict[str, Any]]) -> None:
    """Put the numbers of steps above the picture, where their tokens are."""
    from matplotlib.ticker import MaxNLocator

    if not lines:
        return
    places = {line["step"]: _tokens(line) for line in lines}
    wanted = MaxNLocator(_TICKS, integer=True).tick_values(min(places), max(places))
    steps = sorted(places)
    chosen = {min(steps, key=lambda s: abs(s - want)) for want in wanted if want <= steps[-1]}
    top = axes.twiny()
    top.set_xlim(axes.get_xlim())
    top.set_xticks([places[s] for s in sorted(chosen)], [f"{s:,}" for s in sorted(chosen)])
    top.set_xlabel("step")
