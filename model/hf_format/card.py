"""The model card (README.md) of an exported model.

It shows the shape, the settings of the run, its last evaluation and the results in evals.jsonl.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.averaging.record import average_record
from model.config import GPTConfig
from model.estimates.parameters import count_parameters
from model.hf_format.config import family_of
from storage.atomic import read_json
from storage.checkpoint_folder import STATE_FILE, weights_sha256
from storage.json_lines import is_number, read_lines
from storage.run_folder import RunFolder

log = logging.getLogger(__name__)

_FILE_OPTIONS = ("data", "hellaswag_file", "task_file")  # of eval/subject.py
_RUN_KEYS = ("steps", "batch_tokens", "world_size", "device", "dtype", "torch")
_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [ratchet, {family}]
---

# {name}

{origin}

{figures}

```python
from transformers import pipeline

model = "."  # in this folder; elsewhere its path, or its id on the Hub once it is there
print(pipeline("text-generation", model)("Once upon a time")[0]["generated_text"])
```

{notes}
"""
_TOKENIZER_NOTES = (
    "The tokenizer has no padding token, as GPT-2's has none. To train in batches: "
    "`tokenizer.pad_token = tokenizer.eos_token`; a collator that masks padding then also masks "
    "the end of each text.",
    "`<|endoftext|>` written in a text is one id here, the end of a text. In the training data the "
    "same characters were ordinary bytes.",
)


def model_card(name: str, checkpoint: Path, config: GPTConfig) -> str:
    """The text of README.md for the model in this checkpoint."""
    try:
        sentence, parts = _figures(checkpoint)
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        log.warning(
            "the files of %s beside the weights cannot be read (%r): the card has no figures "
            "of the training",
            *(checkpoint, error),
        )
        sentence, parts = "A language model exported by Ratchet.", []
    figures = "\n\n".join([_table("Shape", _shape(config)), *parts])
    notes = "\n".join(f"* {note}" for note in _notes(config, figures))
    family = family_of(config)
    return _CARD.format(name=name, family=family, origin=sentence, figures=figures, notes=notes)


def _figures(checkpoint: Path) -> tuple[str, list[str]]:
    """What the model is, and the tables of its training and its results."""
    state = _read_if_present(checkpoint / STATE_FILE)
    origin = _read_if_present(checkpoint / "origin.json")
    parts, init = [], None
    if state:
        record = _read_if_present(_run_of(checkpoint).config)
        init = record.get("config", {}).get("init")
        parts.append(_table("Training", _training(state, record.get("run", {}))))
    parts += [
        _table(title, _results(tags))
        for title, tags in _metrics_by_title(checkpoint, state).items()
    ]
    return _sentence(state, origin, average_record(checkpoint), init), parts


def _notes(config: GPTConfig, figures: str) -> list[str]:
    """What a reader of these figures, or a user of the export, would otherwise misunderstand."""
    notes: list[str] = [*_TOKENIZER_NOTES]
    padding = config.padded_vocab_size - config.vocab_size
    if padding and "val/loss" in figures:
        notes.append(
            f"`val/loss` and `val/bits_per_byte` are the training's: their softmax includes the "
            f"{padding} padding rows of the embedding, which this export does not have. "
            "`val_unpadded/…` and the figures of all other tasks, such as "
            "`wikitext/bits_per_byte`, are over the real ids, as this export computes them."
        )
    if family_of(config) == "nanochat":
        notes.append("NanoChatForCausalLM came with transformers 5; older versions lack it.")
    if family_of(config) == "gpt2" and not config.bias:
        stored = count_parameters(replace(config, bias=True), padded=False).total
        notes.append(
            f"The network has no biases. GPT2LMHeadModel stores zeros for them, so transformers "
            f"counts {stored:,} parameters."
        )
    return notes


def _run_of(checkpoint: Path) -> RunFolder:
    """The run that the checkpoint RUN/checkpoints/step_000500 belongs to."""
    return RunFolder(checkpoint.resolve().parents[1])


def _read_if_present(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _sentence(
    state: dict[str, Any], origin: dict[str, Any], average: dict[str, Any], init: str | None
) -> str:
    if average:
        steps = ", ".join(str(one.get("step")) for one in average["checkpoints"])
        data = _data_name(average.get("data"))
        return (
            f"A language model trained on {data} with Ratchet; the weights are the "
            f"{average['kind']} of those at steps {steps}."
        )
    if not state:
        return f"A copy of {_source(origin)}, imported and exported by Ratchet."
    data = _data_name(state.get("data"))
    begin = f", from the weights of {weights_name(Path(init))}" if init else ""
    step = state["step"]
    return f"A language model trained on {data}{begin}, with Ratchet; exported at step {step}."


def _data_name(recorded: str | list[str] | None) -> str:
    """The data set, or the sources of a mixture with their weights, without their paths."""
    if isinstance(recorded, list):
        return ", ".join(Path(place).name for place in recorded)
    return Path(recorded or "unknown data").name


def _source(origin: dict[str, Any]) -> str:
    commit = f" at commit {origin['commit']}" if origin.get("commit") else ""
    return f"{origin.get('source', 'a model')}{commit}"


def weights_name(checkpoint: Path) -> str:
    """A name for the weights that `--init` was given.

    An imported model: its source. A checkpoint of a run: the run, and the step unless it was
    `latest`. Another folder: its name.
    """
    origin = _read_if_present(checkpoint / "origin.json")
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
    # Older checkpoints have only next_window.
    windows = state.get("windows", state.get("next_window", 0))
    length = state.get("context_length", 0)
    return {
        "data": _data_name(state.get("data")),
        "data fingerprint": state.get("data_fingerprint", "")[:16],
        "step": state["step"],
        "tokens": windows * length,
        "window": length,
        "seed": str(state.get("seed")),
        **{field.replace("_", " "): run[field] for field in _RUN_KEYS if field in run},
    }


def _metrics_by_title(checkpoint: Path, state: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics by the title of their table: those of the training loop, and of evals.jsonl."""
    results = _read_if_present(checkpoint / "results.json")
    found: dict[str, dict[str, float]] = {}
    if results.get("metrics"):
        found[f"Results at step {results.get('step')}"] = dict(results["metrics"])
    for line in _evals_of(checkpoint, state):
        title = f"Results at step {state['step']}{_changed_options(line.get('options', ''))}"
        tags = {tag: value for tag, value in line.items() if "/" in tag}
        found.setdefault(title, {}).update(tags)
    return found


def _evals_of(checkpoint: Path, state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of the run's evals.jsonl that were measured on these weights, in order."""
    lines = read_lines(_run_of(checkpoint).evals) if state else []
    weights = weights_sha256(checkpoint) if lines else ""
    for line in lines:
        if line.get("step") == state["step"] and line.get("weights", weights) == weights:
            yield line


def _changed_options(options: str) -> str:
    """The options of an evaluation that differ from their defaults, as part of a title."""
    # Of a file only its option: a published card should not show paths of the author's disk.
    pairs = [word.partition("=") for word in options.split(" ") if "=" in word]
    shown = [
        name if "/" in value or name in _FILE_OPTIONS else f"{name}={value}"
        for name, _, value in pairs
    ]
    return f" with {', '.join(shown)}" if shown else ""


def _results(metrics: dict[str, float]) -> dict[str, str]:
    """Each metric with its standard error, if it has one."""
    rows = {}
    for tag, value in metrics.items():
        if is_number(value) and not tag.endswith("_stderr"):
            error = metrics.get(f"{tag}_stderr")
            rows[tag] = f"{value:.4f}" + (f" ± {error:.4f}" if is_number(error) else "")
    return rows


def _table(title: str, rows: dict[str, Any]) -> str:
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join([f"| {title} | |", "| --- | ---: |", *lines])


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
