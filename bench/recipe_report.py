"""Tables and the plot of bench/recipe.py, from the records of the runs that are finished.

Losses of different variants are compared seed by seed. A mean comes with the standard deviation
over seeds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from bench.figure import figure
from bench.recipe_plan import (
    FULL,
    GPT2,
    MIDDLE,
    MODERN,
    PIECES,
    SIZES,
    Records,
    final_loss,
    first_losses,
)

_STEPS_GOAL, _SECONDS_GOAL = 0.5, 0.6  # of what gpt2 takes
_CLEAR = 2.0  # standard errors

_Mean = tuple[float, float | None]  # and the standard deviation, unknown of one value


def steps_to(loss: float, steps: Sequence[int], losses: Sequence[float | None]) -> float | None:
    """The step at which a curve first is at `loss` or below; None if it never is.

    The curve is taken as straight between two validations. Loss curves are below such a line, so
    the true step is a little earlier.
    """
    before: tuple[int, float] | None = None
    for step, found in zip(steps, losses, strict=True):
        if found is None:
            return None
        if found <= loss:
            if before is None:
                return float(step)
            share = (before[1] - loss) / (before[1] - found)
            return before[0] + share * (step - before[0])
        before = step, found
    return None


def _mean(values: Sequence[float | None]) -> _Mean | None:
    """Mean and deviation; None without values, or if one of them is missing or not finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _best_by_seed(found: Records, size: str, variant: str) -> dict[int, Mapping[str, Any]]:
    """The records of the best option."""
    options = first_losses(found, size, variant)
    best = min(options, key=options.__getitem__, default=None)
    return {
        record["seed"]: record
        for record in sorted(found.values(), key=lambda record: record.get("seed", 0))
        if (record.get("size"), record.get("variant")) == (size, variant)
        and record["option"] == best
    }


def summary(found: Records, steps: int) -> dict[str, Any]:
    """What the tables show: a row for each size and for each piece, as far as there are runs."""
    sizes = {size: _comparison(found, size) for size in (*SIZES, FULL)}
    pieces = {name: _difference(found, name) for name in PIECES}
    return {
        "steps": steps,
        "sizes": {size: row for size, row in sizes.items() if row},
        "pieces": {name: row for name, row in pieces.items() if row},
    }


def _comparison(found: Records, size: str) -> dict[str, Any] | None:
    """`gpt2` and `modern` of one size, on the seeds that both have."""
    gpt2, modern = _best_by_seed(found, size, GPT2), _best_by_seed(found, size, MODERN)
    seeds = sorted(gpt2.keys() & modern.keys())
    if not seeds:
        return None
    total = gpt2[seeds[0]]["steps"][-1]
    reached = [
        steps_to(final_loss(gpt2[seed]), modern[seed]["steps"], modern[seed]["losses"])
        for seed in seeds
    ]
    back = [
        steps_to(final_loss(modern[seed]), gpt2[seed]["steps"], gpt2[seed]["losses"])
        for seed in seeds
    ]
    needed, times = _mean(reached), found.get(f"{size}_step_seconds")
    share = needed and needed[0] / total
    return {
        "seeds": seeds,
        "parameters_of_blocks": modern[seeds[0]]["parameters_of_blocks"],
        "parameters": {GPT2: gpt2[seeds[0]]["parameters"], MODERN: modern[seeds[0]]["parameters"]},
        "loss_by_rate": {k: _finite(v) for k, v in first_losses(found, size, GPT2).items()},
        "rate": gpt2[seeds[0]]["option"],
        "loss": {
            GPT2: _mean([final_loss(gpt2[seed]) for seed in seeds]),
            MODERN: _mean([final_loss(modern[seed]) for seed in seeds]),
        },
        "steps_to_other": needed,
        "steps_share": share,
        "other_reaches_modern": _mean(back),
        "step_seconds": times and {GPT2: times[GPT2], MODERN: times[MODERN]},
        "seconds": times and {GPT2: total * times[GPT2], MODERN: total * times[MODERN]},
        "seconds_to_other": needed and times and needed[0] * times[MODERN],
        "seconds_share": share and times and share * times[MODERN] / times[GPT2],
    }


def _difference(found: Records, piece: str) -> dict[str, Any] | None:
    """`modern` with a piece changed, against `modern`, on the seeds that both have."""
    modern, changed = _best_by_seed(found, MIDDLE, MODERN), _best_by_seed(found, MIDDLE, piece)
    seeds = sorted(modern.keys() & changed.keys())
    if not seeds:
        return None
    differences = [final_loss(changed[seed]) - final_loss(modern[seed]) for seed in seeds]
    options = first_losses(found, MIDDLE, piece)
    return {
        "title": PIECES[piece],
        "seeds": seeds,
        "option": changed[seeds[0]]["option"],
        "loss_by_option": {k: _finite(v) for k, v in options.items()},
        "loss": _mean([final_loss(changed[seed]) for seed in seeds]),
        "difference": _mean(differences),
        "verdict": _verdict(differences),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _verdict(differences: Sequence[float]) -> str:
    """What a change did to the loss."""
    mean = _mean(differences)
    if mean is None:
        return "diverged"
    word = "higher" if mean[0] > 0 else "lower"
    if mean[1] is None:
        return f"{word} on one seed"
    error = mean[1] / math.sqrt(len(differences))
    return word if abs(mean[0]) > _CLEAR * error else "unclear"


def markdown(result: Mapping[str, Any]) -> str:
    """Both tables."""
    return "\n".join([*_size_table(result), "", *_piece_table(result)]) + "\n"


def _size_table(result: Mapping[str, Any]) -> list[str]:
    steps = result["steps"]
    lines = [
        f"| parameters besides embeddings | gpt2, best AdamW rate: loss after {steps} steps "
        f"| modern: loss after {steps} steps | modern reaches gpt2's loss: steps "
        f"| goal ≤ {_STEPS_GOAL:.0%} | s a step, gpt2 / modern | s to gpt2's loss "
        f"| goal ≤ {_SECONDS_GOAL:.0%} | gpt2 reaches modern's loss | seeds |",
        "| --: | --: | --: | --: | --- | --: | --: | --- | --- | --: |",
    ]
    for row in result["sizes"].values():
        loss, a_step, whole = row["loss"], row["step_seconds"], row["seconds"]
        needed, share = row["steps_to_other"], row["steps_share"]
        back = row["other_reaches_modern"]
        cells = [
            f"{row['parameters_of_blocks'] / 1e6:.2f}M",
            f"{_shown(loss[GPT2], 3)} ({row['rate']})",
            _shown(loss[MODERN], 3),
            f"{_shown(needed, 0)} ({share:.0%})" if needed else "not reached",
            _goal(share, _STEPS_GOAL),
            f"{a_step[GPT2]:.2f} / {a_step[MODERN]:.2f}" if a_step else "not measured",
            _seconds(row["seconds_to_other"], whole, row["seconds_share"]),
            _goal(row["seconds_share"], _SECONDS_GOAL) if whole else "",
            f"in {back[0]:.0f} steps" if back else "no",
            str(len(row["seeds"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _seconds(to_other: float | None, whole: Mapping[str, float] | None, share: float | None) -> str:
    if whole is None:
        return ""
    if to_other is None or share is None:
        return f"not reached, of {whole[GPT2]:.0f}"
    return f"{to_other:.1f} of {whole[GPT2]:.1f} ({share:.0%})"


def _goal(share: float | None, goal: float) -> str:
    return "reached" if share is not None and share <= goal else "missed"


def _piece_table(result: Mapping[str, Any]) -> list[str]:
    row = result["sizes"].get(MIDDLE)
    modern = _shown(row["loss"][MODERN], 4) if row else "not run"
    lines = [
        f"| the middle size after {result['steps']} steps | loss | difference | the loss is "
        "| seeds |",
        "| --- | --: | --: | --- | --: |",
        f"| modern | {modern} | | | |",
    ]
    for row in result["pieces"].values():
        title = row["title"]
        if len(row["loss_by_option"]) > 1:
            title += f" (best of {len(row['loss_by_option'])} rates: {row['option']})"
        change = row["difference"]
        cells = [title, _shown(row["loss"], 4), _shown(change, 4, "+"), row["verdict"]]
        lines.append(f"| {' | '.join(cells)} | {len(row['seeds'])} |")
    return lines


def _shown(mean: _Mean | None, digits: int, sign: str = "") -> str:
    """Mean ± deviation."""
    if mean is None:
        return "diverged"
    text = f"{mean[0]:{sign}.{digits}f}"
    return text if mean[1] is None else f"{text} ± {mean[1]:.{digits}f}"


def draw(result: Mapping[str, Any], found: Records, file: Path) -> None:
    """The loss curves of every size, and the differences of the pieces as bars."""
    with figure(file, (11, 8), panels=2, columns=2) as panels:
        for panel, (size, row) in zip(panels, result["sizes"].items(), strict=False):
            _draw_curves(panel, size, row, found)
        _draw_bars(panels[3], result["pieces"])


def _draw_curves(panel: Axes, size: str, row: Mapping[str, Any], found: Records) -> None:
    colours = {GPT2: "C0", MODERN: "C3"}
    names = {GPT2: f"gpt2, AdamW {row['rate']} (best of {len(row['loss_by_rate'])})"}
    for variant, colour in colours.items():
        for number, record in enumerate(_best_by_seed(found, size, variant).values()):
            # The first validation is before training, at 7.6 or more: it would flatten the rest.
            curve = record["steps"][1:], record["losses"][1:]
            label = None if number else names.get(variant, variant)
            panel.plot(*curve, color=colour, linewidth=1, label=label)
    if row["loss"][GPT2]:
        panel.axhline(row["loss"][GPT2][0], color=colours[GPT2], linewidth=0.8, linestyle=":")
    if row["steps_to_other"]:
        share, needed = row["steps_share"], row["steps_to_other"][0]
        label = f"gpt2's last loss after {needed:.0f} steps ({share:.0%})"
        panel.axvline(needed, color="0.4", linewidth=0.8, linestyle="--", label=label)
    panel.set(
        title=f"{row['parameters_of_blocks'] / 1e6:.1f}M parameters besides embeddings",
        xlabel="step",
        ylabel="validation loss, nats",
    )


def _draw_bars(panel: Axes, pieces: Mapping[str, Any]) -> None:
    rows = [row for row in pieces.values() if row["difference"]]
    if not rows:
        panel.set_axis_off()
        return
    rows.sort(key=lambda row: row["difference"][0])
    titles = [row["title"] for row in rows]
    means = [row["difference"][0] for row in rows]
    deviations = [row["difference"][1] or 0.0 for row in rows]
    label = "loss - modern's loss"
    panel.barh(titles, means, xerr=deviations, color="C3", alpha=0.7, capsize=2, label=label)
    panel.axvline(0, color="0.2", linewidth=0.8)
    panel.tick_params(axis="y", labelsize=7)
    panel.set(title="1.0M: modern with one piece changed", xlabel="nats (deviation over seeds)")
