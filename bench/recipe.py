"""GPT-2 with AdamW against `modern` in several sizes, and `modern` without each piece.

    python bench/recipe.py --data data/prose --out runs/recipe
    python bench/recipe.py --data data/prose --out runs/recipe_124M --sizes 124M --device cuda \
        --steps 858 --batch-tokens 65536 --seeds 1 --results bench/results/recipe_h100.json

AdamW has the best of several learning rates, found on one seed; `modern` is its preset as it is, at
a smaller size. By default every run trains on 0.4M tokens in one thread of the CPU. Each finished
run is a file in --out, and the same command continues with those that are missing. After every run
the results so far are written: JSON, a Markdown table and a plot.

Seconds are CPU seconds of training steps (time.process_time; on a GPU, time), without validation:
the median step of both sides, measured in turns, times the number of steps.
"""

import logging
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bench.bare_run import bare_learner, bare_loader
from bench.provenance import RESULTS, provenance
from bench.recipe_plan import (
    FULL,
    GPT2,
    MODERN,
    SIZES,
    Timing,
    Trial,
    base_config,
    context_length,
    plan,
)
from bench.recipe_report import draw, markdown, summary
from data_prep.dataset.shards import DataSet, open_data_set
from eval.subject import Subject
from eval.tasks.val_loss import validation_sums, validation_tokens
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from storage.atomic import read_json, write_json, write_text
from storage.script_options import parse_options
from train.config import Config
from train.schedule import learning_rate
from train.step import Learner

_OUT = RESULTS / "recipe.json"
_VALIDATIONS = 10  # of a run, besides the one before its first step
_TIMED_STEPS, _UNTIMED_STEPS = 15, 3
_VAL_MICRO_BATCH = 16

log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Compare `modern` with GPT-2's network and AdamW, and take away each of its pieces."""

    data: Path = Path("data/prose")
    """Data set folder; bench/README.md says how it is made."""
    out: Path = Path("runs/recipe")
    """Folder with a file for each finished run."""
    sizes: tuple[str, ...] = tuple(SIZES)
    """Sizes to compare: small, middle, large or 124M. The pieces are changed in the middle one."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device to train on."""
    steps: int = 200
    """Steps of each run; at least 10, one for each validation."""
    batch_tokens: int = 2048
    """Tokens of a step."""
    val_tokens: int = 16_384
    """Tokens of each validation."""
    seeds: int = 3
    """Seeds of each comparison."""
    results: Path = _OUT
    """Result file; the table (.md) and the plot (.png) are written beside it."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            if size not in (*SIZES, FULL):
                raise ValueError(
                    f"sizes={size} is not known; choose from {', '.join((*SIZES, FULL))}"
                )
            length = context_length(size)
            if self.batch_tokens < 1 or self.batch_tokens % length:
                raise ValueError(
                    f"batch_tokens={self.batch_tokens} is not a multiple of {length}, the context "
                    f"length of {size}; try {16 * length}"
                )
        if self.steps < _VALIDATIONS:
            raise ValueError(f"steps={self.steps} is too few; use {_VALIDATIONS} or more")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} is no comparison; use 1 or more")


def _run_trial(trial: Trial, data: DataSet, val_tokens: int, ranks: Ranks) -> dict[str, Any]:
    """Train one network; the record has its validation losses and the steps they belong to.

    A loss that is not finite ends the run, and is None in the record.
    """
    config, steps = trial.config, trial.config.steps or 0
    learner = bare_learner(config, ranks)
    loader = bare_loader(config, learner)
    subject = Subject(learner.model, data.tokenizer(), ranks, config.mask_documents)
    due = {round(part * steps / _VALIDATIONS) for part in range(_VALIDATIONS + 1)}
    at: list[int] = []
    losses: list[float | None] = []
    seconds: list[float] = []
    with trial.change(learner):
        for step in range(steps + 1):
            if step in due:
                at.append(step)
                losses.append(_loss_or_none(subject, data, val_tokens, learner))
            if step == steps or losses[-1] is None:
                break
            batch = loader.next_step()
            lr = learning_rate(step, steps, config.optimizer.lr, config.schedule)
            begin = _clock(ranks)
            learner.step(batch, lr)
            seconds.append(_clock(ranks) - begin)
    loader.close()
    torch.compiler.reset()
    matrices = sum(p.numel() for p in learner.model.h.parameters())
    return {
        "size": trial.size,
        "variant": trial.variant,
        "option": trial.option,
        "seed": config.seed,
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "parameters_of_blocks": matrices,
        "steps": at,
        "losses": losses,
        "step_seconds": statistics.median(seconds),
        "train_seconds": sum(seconds),
    }


def _clock(ranks: Ranks) -> float:
    """Seconds as the head of this file defines them, from some moment on."""
    if ranks.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _loss_or_none(
    subject: Subject, data: DataSet, val_tokens: int, learner: Learner
) -> float | None:
    """The validation loss, or None if it is not finite."""
    shards, length = data.split("val"), learner.plan.context_length
    try:
        found = validation_sums(
            subject, shards, val_tokens, length, _VAL_MICRO_BATCH, learner.dtype
        ).tags("val")
    except ValueError as error:  # what else it refuses was checked before the first run
        log.info("%s", error)
        return None
    return found["val/loss"]


def _time_steps(timing: Timing, ranks: Ranks) -> dict[str, Any]:
    """The median CPU seconds of a step of both sides; in turns, so that both have the same load."""
    learners = [bare_learner(config, ranks) for config in timing.configs]
    loaders = [
        bare_loader(config, learner)
        for config, learner in zip(timing.configs, learners, strict=True)
    ]
    seconds: list[list[float]] = [[], []]
    for _ in range(_UNTIMED_STEPS + _TIMED_STEPS):
        for learner, loader, took in zip(learners, loaders, seconds, strict=True):
            batch = loader.next_step()
            begin = _clock(ranks)
            learner.step(batch, 1e-3)
            took.append(_clock(ranks) - begin)
    for loader in loaders:
        loader.close()
    torch.compiler.reset()
    medians = [statistics.median(took[_UNTIMED_STEPS:]) for took in seconds]
    return {GPT2: medians[0], MODERN: medians[1]}


def _open_folder(arguments: Arguments, data: DataSet) -> dict[str, dict[str, Any]]:
    """The finished runs in --out, by name.

    Raises: ValueError if they have other settings.
    """
    kept = ("steps", "batch_tokens", "val_tokens")
    settings = {key: getattr(arguments, key) for key in kept}
    settings |= {"data": data.fingerprint, "sizes": {k: list(v) for k, v in SIZES.items()}}
    file = arguments.out / "settings.json"
    if file.exists():
        for key, value in read_json(file).items():
            if settings.get(key) != value:
                raise ValueError(
                    f"{arguments.out} has runs with {key}={value}, not {settings.get(key)}; "
                    "give another --out, or remove that folder"
                )
    write_json(file, settings)
    files = sorted(set(arguments.out.glob("*.json")) - {file})
    return {path.stem: read_json(path) for path in files}


def _missing(
    arguments: Arguments, base: Config, found: dict[str, dict[str, Any]]
) -> list[Trial | Timing]:
    """The runs that are still to be made, as far as they are known."""
    planned = plan(base, arguments.seeds, found, arguments.sizes)
    return [one for one in planned if one.name not in found]


def _report(arguments: Arguments, head: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    """Write the results so far."""
    result = summary(found, arguments.steps)
    write_json(arguments.results, head | {"summary": result, "runs": found})
    write_text(arguments.results.with_suffix(".md"), markdown(result))
    draw(result, found, arguments.results.with_suffix(".png"))


def main() -> None:
    """Make every missing run, and report after each."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start(arguments.device)
        if ranks.world_size > 1:
            raise ValueError(
                f"world_size={ranks.world_size}, but this benchmark has one process; start it "
                "with python, not torchrun"
            )
        torch.set_num_threads(1)
        data = open_data_set(arguments.data)
        for size in arguments.sizes:
            validation_tokens(data.split("val"), arguments.val_tokens, context_length(size))
        found = _open_folder(arguments, data)
        n_vocab = data.tokenizer().n_vocab
        base = base_config(arguments.data, n_vocab, arguments.steps, arguments.batch_tokens)
        settings = asdict(arguments) | {"data": arguments.data.name, "vocab_size": n_vocab}
        settings = {key: value for key, value in settings.items() if key not in ("out", "results")}
        head = provenance(("torch",)) | {"settings": settings, "threads": 1}
        while missing := _missing(arguments, base, found):
            job = missing[0]
            if isinstance(job, Timing):
                record = _time_steps(job, ranks)
            else:
                record = _run_trial(job, data, arguments.val_tokens, ranks)
            found[job.name] = record | {"commit": head["commit"]}
            write_json(arguments.out / f"{job.name}.json", found[job.name])
            last = record["losses"][-1] if "losses" in record else record[MODERN]
            log.info("%s: %s; %d or more runs are left", job.name, last, len(missing) - 1)
            _report(arguments, head, found)
        _report(arguments, head, found)
        log.info("%s", arguments.results.with_suffix(".md").read_text(encoding="utf-8"))
    stop()


if __name__ == "__main__":
    main()
