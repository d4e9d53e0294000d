"""TensorBoard's pages: which curves there are, the chart of both losses, HParams, samples."""

import re
from collections.abc import Mapping
from typing import Any

from storage.metrics import Metrics

VAL_LOSS, BEST_LOSS = "loss/val", "loss/val_best"
_TRAIN_LOSS = "loss/train"
# The tags of metrics.jsonl that are curves under a name of their own here. TensorBoard sorts its
# groups by name, and `loss` comes first.
_TAGS = {
    "train/loss": _TRAIN_LOSS,
    "val/loss": VAL_LOSS,
    "val/bits_per_byte": "loss/val_bits_per_byte",
    "train/lr": "train/lr",
    "train/grad_norm": "train/grad_norm",
    "speed/tokens_per_second": "speed/tokens_per_second",
    "speed/mfu": "speed/mfu",
    "speed/save_stall_milliseconds": "speed/save_stall_milliseconds",
}
_SKIPPED = "train/skipped"  # a curve of the steps that were
_NO_CURVES = ("train/", "speed/", "data/", "guard/", "band/")  # constants, counts and bookkeeping
_COMPARED = (
    *("seed", "data", "init", "batch_tokens", "steps", "dtype"),
    *("optimizer.name", "optimizer.lr", "optimizer.weight_decay", "schedule.kind"),
    *("schedule.warmup_steps", "schedule.hold", "schedule.decay", "schedule.min_lr_ratio"),
    *("model.n_layer", "model.n_head", "model.n_embd", "model.context_length"),
    *("model.vocab_size", "model.dropout"),
)
# What TensorBoard's Markdown (the package of that name) takes for something else than a character.
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|>])")


def curves(metrics: Metrics) -> dict[str, float]:
    """The values that are points of curves, by TensorBoard's tag."""
    found = {}
    for tag, value in metrics.items():
        if isinstance(value, str) or (tag == _SKIPPED and not value):
            continue
        if tag in _TAGS or tag == _SKIPPED:
            found[_TAGS.get(tag, tag)] = float(value)
        elif "/" in tag and not tag.startswith(_NO_CURVES) and not tag.endswith("_stderr"):
            found[f"score/{tag}"] = float(value)
    return found


def chart_layout() -> Any:
    """The summary that puts training and validation loss on one chart (Custom Scalars)."""
    # Imported here: only rank 0 writes, and the others would wait for it at every start.
    from torch.utils.tensorboard.summary import custom_scalars

    # Each tag is a regular expression that matches the beginning.
    losses = ["Multiline", [f"{_TRAIN_LOSS}$", f"{VAL_LOSS}$"]]
    bits = ["Multiline", ["loss/val_bits_per_byte"]]
    scores = ["Multiline", ["score/.*/acc.*"]]
    return custom_scalars(
        {
            "Loss": {"training and validation loss": losses, "bits per byte": bits},
            "Scores": {"accuracy of the tasks": scores},
        }
    )


def hparams_page(record: Mapping[str, Any]) -> Any:
    """The summary from which the HParams page shows this run as a row.

    `record` is the content of config.json. The page has a column for each curve, with its last
    value, and shows first the settings in which the runs differ.
    """
    from torch.utils.tensorboard.summary import hparams

    settings: Mapping[str, Any] = record["config"]
    values = {name: _setting(settings, name) for name in _COMPARED}
    values["parameters"] = record["run"]["parameters"]
    shown = {name: value for name, value in values.items() if value is not None}
    # Without the summary of an experiment, which would fix the columns for all runs.
    _, start, _ = hparams(shown, {})
    return start


def _setting(settings: Mapping[str, Any], name: str) -> str | float | None:
    group, _, key = name.rpartition(".")
    value = (settings.get(group, {}) if group else settings).get(key)
    if isinstance(value, float | str | None) and not isinstance(value, bool):
        return value
    return float(value) if type(value) is int else str(value)


def samples_page(samples: list[tuple[str, str]]) -> str:
    """Prompts in bold with their continuations, as Markdown that shows each character as it is."""
    return "\n\n---\n\n".join(
        f"**{_as_shown(prompt.rstrip())}**{_as_shown(prompt[len(prompt.rstrip()) :] + text)}"
        if prompt.strip()
        else f"*new document:*\n{_as_shown(text)}"
        for prompt, text in samples
    )


def _as_shown(text: str) -> str:
    """Text in Markdown: nothing in it is markup, lines stay lines, indents stay indents."""
    text = _MARKUP.sub(r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
    lines = text.expandtabs(4).split("\n")
    # TensorBoard keeps the ends of lines as they are.
    return "\n".join(
        "&nbsp;" * (len(line) - len(line.lstrip())) * (number > 0)
        + (line.lstrip() if number else line)
        for number, line in enumerate(lines)
    )
