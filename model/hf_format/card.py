"""The model card of an export: the shape, and the figures of the run and of who watched it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.config import GPTConfig
from model.estimates.parameters import count_parameters
from model.hf_format.config import family_of
from storage.atomic import read_json
from storage.checkpoint_folder import MANIFEST
from storage.json_lines import read_lines
from storage.run_folder import RunFolder

FILES = ("data", "hellaswag_file", "task_file")  # options of eval/subject.py
RUN_FIELDS = ("steps", "batch_tokens", "world_size", "device", "dtype", "torch")
CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [ratchet, {family}]
---

# {name}

{origin}

{figures}

```python
from transformers import pipeline

print(pipeline("text-generation", "{name}")("Once upon a time")[0]["generated_text"])
```
"""


def model_card(name: str, checkpoint: Path, config: GPTConfig) -> str:
    """The text of README.md for the model of this checkpoint."""
    state = _content(checkpoint / "state.json")
    origin = _content(checkpoint / "origin.json")
    parts = [_table("Shape", _shape(config))]
    init = None
    if state:
        # runs/NAME/checkpoints/step_000500: the run's settings lie two folders up.
        record = _content(checkpoint.resolve().parents[1] / "config.json")
        init = record.get("config", {}).get("init")
        parts.append(_table("Training", _training(state, record.get("run", {}))))
    parts += [_table(title, _results(tags)) for title, tags in _measured(checkpoint, state).items()]
    sentence, figures = _sentence(state, origin, init), "\n\n".join(parts)
    return CARD.format(name=name, family=family_of(config), origin=sentence, figures=figures)


def _content(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _sentence(state: dict[str, Any], origin: dict[str, Any], init: str | None) -> str:
    if not state:
        return f"A copy of {_source(origin)}, imported and exported by Ratchet."
    data = Path(state.get("data") or "unknown data").name
    begin = f", from the weights of {weights_named(Path(init))}" if init else ""
    step = state["step"]
    return f"A language model trained on {data}{begin}, with Ratchet; exported at step {step}."


def _source(origin: dict[str, Any]) -> str:
    commit = f" at commit {origin['commit']}" if origin.get("commit") else ""
    return f"{origin.get('source', 'a model')}{commit}"


def weights_named(checkpoint: Path) -> str:
    """What the weights of `--init` were, as far as that is still to be found there.

    Of a run's checkpoint the run and, if it was named, the step; of others the folder's name alone.
    """
    origin = _content(checkpoint / "origin.json")
    if origin:
        return _source(origin)
    if checkpoint.parent.name != "checkpoints":
        return checkpoint.name
    run = checkpoint.absolute().parents[1].name
    return run if checkpoint.name == "latest" else f"{run}, {checkpoint.name}"


def _shape(config: GPTConfig) -> dict[str, Any]:
    return {
        "parameters": count_parameters(config, padded=False).total,
        "layers": config.n_layer,
        "heads": config.n_head,
        "width": config.n_embd,
        "context length": config.context_length,
        "vocabulary": config.vocab_size,
    }


def _training(state: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    windows = state.get("windows", state.get("next_window", 0))  # older checkpoints lack the former
    length = state.get("context_length", 0)
    return {
        "data": Path(state.get("data", "")).name,
        "data fingerprint": state.get("data_fingerprint", "")[:16],
        "step": state["step"],
        "tokens": windows * length,
        "window": length,
        "seed": str(state.get("seed")),
        **{field.replace("_", " "): run[field] for field in RUN_FIELDS if field in run},
    }


def _measured(checkpoint: Path, state: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics by the title of their table: the loop's last, and a watcher's at this very step."""
    results = _content(checkpoint / "results.json")
    found: dict[str, dict[str, float]] = {}
    if results.get("metrics"):
        found[f"Results at step {results.get('step')}"] = dict(results["metrics"])
    for line in _watched(checkpoint, state):
        title = f"Results at step {state['step']}{_asked(line.get('options', ''))}"
        tags = {tag: value for tag, value in line.items() if "/" in tag}
        found.setdefault(title, {}).update(tags)
    return found


def _watched(checkpoint: Path, state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of the run's evals.jsonl that were measured on these weights, in their order."""
    evals = RunFolder(checkpoint.resolve().parents[1]).evals if state else None
    if evals is None:
        return
    weights = _content(checkpoint / MANIFEST)["files"]["model.safetensors"]["sha256"]
    for line in read_lines(evals):
        if line.get("step") == state["step"] and line.get("weights", weights) == weights:
            yield line


def _asked(options: str) -> str:
    """What the watcher was asked for that changes figures; of files only that they were given.

    Where somebody's files lie is nobody's business.
    """
    pairs = [word.partition("=") for word in options.split(" ") if "=" in word]
    asked = [
        name if "/" in value or name in FILES else f"{name}={value}" for name, _, value in pairs
    ]
    return f" with {', '.join(asked)}" if asked else ""


def _results(metrics: dict[str, float]) -> dict[str, str]:
    """Each metric with its standard error, where it has one."""
    rows = {}
    for tag, value in metrics.items():
        if not tag.endswith("_stderr"):
            error = metrics.get(f"{tag}_stderr")
            rows[tag] = f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
    return rows


def _table(title: str, rows: dict[str, Any]) -> str:
    lines = [f"| {key} | {_written(value)} |" for key, value in rows.items()]
    return "\n".join([f"| {title} | |", "| --- | ---: |", *lines])


def _written(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
