"""What the end of a run says of its best checkpoint, and of a run that stopped improving."""

import shlex
from pathlib import Path

from storage.ownership.latest import follow_latest
from train.guards.best_validation import best_validation
from train.run import Run

_PROMPT = "The"


def why_it_stopped(run: Run) -> str:
    """Why a run has finished before its last step; empty if it did not."""
    best = best_validation(run.results)
    if run.step >= run.steps or best is None or not run.stopped_improving:
        return ""
    count = "validation was" if best.worse == 1 else f"{best.worse} validations were"
    return f"the last {count} no better than that of step {best.step}"


def best_rows(run: Run) -> list[tuple[str, str]]:
    """Rows of the closing table: why the run stopped, the best checkpoint, and how to use it.

    Nothing where the last weights are the best ones, or none were validated.
    """
    best, why = best_validation(run.results), why_it_stopped(run)
    if best is None or best.step == run.step:
        return []
    rows = [("stopped", why)] if why else []
    value = f"validation loss {best.loss:.4f}"
    checkpoint = run.folder.checkpoint(best.step)
    if best.step == 0:
        start = f", those of --init {run.config.init}" if run.config.init else ""
        return [*rows, ("best weights", f"those before the first step{start}: {value}")]
    if not checkpoint.is_dir():
        kept = "not kept (--save.keep-best 1 keeps it)"
        return [*rows, ("best weights", f"those of step {best.step}, {value}, {kept}")]
    prompt = next((text for text in run.config.sample.prompts if text), _PROMPT)
    use = f"python eval/generate.py --checkpoint {shlex.quote(str(_best_link(checkpoint)))}"
    return [
        *rows,
        ("best checkpoint", f"{checkpoint}, {value}"),
        ("use it", f"{use} --prompt {shlex.quote(prompt)}"),
    ]


def _best_link(checkpoint: Path) -> Path:
    """The name `best` if it stands for this checkpoint, else the checkpoint itself."""
    link = checkpoint.with_name("best")
    return link if follow_latest(link).resolve() == checkpoint.resolve() else checkpoint
