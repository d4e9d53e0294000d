"""Runs any task of lm-evaluation-harness on a checkpoint, without exporting it first.

    python eval/lm_eval_model.py --checkpoint runs/gpt2 --tasks blimp
    python eval/lm_eval_model.py run --model ratchet \\
        --model_args checkpoint=runs/gpt2 --tasks blimp

The second form is the harness's own command line (`lm-eval`), which then knows the model `ratchet`.
Runs on one process or under torchrun. The harness (`pip install -c constraints.txt -e
'.[lm-eval]'`) supplies the tasks, prompts and metrics; eval/harness/ supplies the model.
"""

import logging
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval.harness.model import RatchetLM, check_installed
from model.precision import Precision
from parallel.ranks import silence_other_ranks, stop, user_errors
from storage.script_options import parse_options
from storage.terminal.json_output import (
    STANDARD_OUTPUT,
    check_json_target,
    write_json_target,
)

_HARNESS_COMMANDS = ("run", "ls", "validate")

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Evaluate a checkpoint with lm-evaluation-harness."""

    checkpoint: Path
    """Folder of a run (its newest sound checkpoint) or of a checkpoint; or a model
    of Hugging Face, as a folder or an id of its Hub, which is imported once."""
    tasks: tuple[str, ...]
    """Tasks, groups or tags of the harness, or .yaml files; separated by spaces or commas."""
    few_shot: int | None = None
    """Number of solved examples before each question; default: as each task defines it."""
    limit: int | None = None
    """Use only the first N items of each task; default: all."""
    include_path: Path | None = None
    """Folder with more tasks as .yaml files."""
    gen_kwargs: str | None = None
    """Replaces the tasks' generation settings, such as max_gen_toks=64,temperature=0.7. A setting
    that sampling does not have is refused."""
    json: Path | None = None
    """JSON file to write the numbers to, by task, with what identifies checkpoint and tasks; -:
    standard output."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses CUDA if it is available."""
    dtype: Precision = "auto"
    """Precision of matrix products; auto: bfloat16 on CUDA, float32 on the CPU."""
    tokens_per_batch: int | None = None
    """Tokens in one batch; default: 2,048 on the CPU, 16,384 on CUDA."""

    def __post_init__(self) -> None:
        for name, least in (("few_shot", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is too small; use {least} or more")
        check_json_target(self.json)


def _run_harness(arguments: Arguments) -> tuple[RatchetLM, dict[str, Any]]:
    """Run the harness. Returns the model and, on rank 0, the harness's results.

    Raises: ValueError if the harness does not know a task.
    """
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    included = str(arguments.include_path) if arguments.include_path else None
    manager = TaskManager(include_path=included)
    tasks = [name for text in arguments.tasks for name in text.split(",") if name]
    unknown = [n for n in tasks if not (n.endswith(".yaml") or n in manager.all_tasks)]
    if unknown or not tasks:
        raise ValueError(
            f"lm-evaluation-harness has no task {', '.join(unknown) or '(none was given)'}; "
            "`python eval/lm_eval_model.py ls tasks` lists those that it has"
        )
    model = RatchetLM(
        arguments.checkpoint, arguments.device, arguments.dtype, arguments.tokens_per_batch
    )
    try:
        found = simple_evaluate(
            model,
            tasks=tasks,
            num_fewshot=arguments.few_shot,
            limit=arguments.limit,
            task_manager=manager,
            gen_kwargs=arguments.gen_kwargs,
            log_samples=False,
        )
    except (ValueError, RuntimeError):
        raise
    except Exception as error:  # of a task's file or data, which the harness does not check
        raise ValueError(
            f"lm-evaluation-harness cannot run {', '.join(tasks)} ({type(error).__name__}: "
            f"{error}); run the tasks one by one to find the one that fails"
        ) from error
    return model, dict(found or {})


def _record(arguments: Arguments, model: RatchetLM, found: dict[str, Any]) -> dict[str, Any]:
    """The numbers by task, what each task was, and under "checkpoint" what answered it."""
    tasks = {}
    for name, numbers in found["results"].items():
        samples = found.get("n-samples", {}).get(name, {})
        tasks[name] = numbers | {
            "version": found.get("versions", {}).get(name),
            "few_shot": found.get("n-shot", {}).get(name),
            "samples": samples.get("effective"),
            "samples_of_task": samples.get("original"),
            "left_out": len(model.left_out.documents.get(name, ())),
        }
    settings = {"limit": arguments.limit, "gen_kwargs": arguments.gen_kwargs}
    harness = {"lm_eval": version("lm_eval"), "contexts_cut": model.truncated}
    return tasks | {"checkpoint": model.get_model_info() | settings | harness}


def _report(arguments: Arguments, model: RatchetLM, found: dict[str, Any]) -> None:
    """Print the harness's table and what was left out, and write the JSON file."""
    from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

    for task in model.left_out.lost_tasks():
        found["results"].pop(task, None)
    if found["results"]:
        log.info("%s", make_table(found))
    if model.truncated:
        log.warning("%d contexts were cut from the left to fit the model", model.truncated)
    if arguments.json is not None and found["results"]:
        write_json_target(arguments.json, _record(arguments, model, found))


def _harness_command(words: list[str]) -> None:
    """The harness's own command line, with the model `ratchet`."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    sys.argv = ["lm-eval", *words]
    cli_evaluate()


def main() -> None:
    """Parse the options, run the harness, print its table."""
    silence_other_ranks()
    with user_errors():
        words = sys.argv[1:]
        its_own = words[:1] and words[0] in _HARNESS_COMMANDS
        arguments = None if its_own else parse_options(Arguments)
        check_installed()
        if arguments is None:
            _harness_command(words)
        else:
            # The harness, and what it calls, may print.
            alone = arguments.json == STANDARD_OUTPUT
            with redirect_stdout(sys.stderr) if alone else nullcontext():
                model, found = _run_harness(arguments)
            if model.subject.ranks.is_main:
                _report(arguments, model, found)
        if RatchetLM.latest is not None:
            RatchetLM.latest.left_out.raise_tasks()
    stop()


if __name__ == "__main__":
    main()
