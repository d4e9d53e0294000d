"""What the end of a run says of its best checkpoint, and of a run that stopped improving."""

from pathlib import Path

from storage.ownership.latest import follow_latest
from train.guards.best_validation import best_validation
from train.run import Run


def why_it_stopped(run: Run) -> str:
    """Why a run has finished before its last step; empty if it did not."""
    best = best_validation(run.results)
    if run.step >= run.steps or best is None or not run.stopped_improving:
        return ""
    count = "validation was" if best.worse == 1 else f"{best.worse} validations were"
    return f"the last {count} no better than that of step {best.step}"


def better_checkpoint(run: Run) -> Path | None:
    """The checkpoint with the best validation loss, if it is there and not the last one.

    By the name `best`, if that stands for it.
    """
    best = best_validation(run.results)
    if best is None or best.step in (0, run.step):
        return None
    checkpoint = run.folder.checkpoint(best.step)
    link = checkpoint.with_name("best")
    if follow_latest(link).resolve() == checkpoint.resolve():
        checkpoint = link
    return checkpoint if checkpoint.is_dir() or checkpoint.is_file() else None


def best_rows(run: Run) -> list[tuple[str, str]]:
    """Rows of the closing table: why the run stopped, and its best checkpoint.

    Nothing where the last weights are the best ones, or none were validated.
    """
    best, why = best_validation(run.results), why_it_stopped(run)
    if best is None or best.step == run.step:
        return []
    rows = [("stopped", why)] if why else []
    value = f"validation loss {best.loss:.4f}"
    if best.step == 0:
        start = f", those of --init {run.config.init}" if run.config.init else ""
        return [*rows, ("best weights", f"those before the first step{start}: {value}")]
    if better_checkpoint(run) is None:
        kept = "not kept (--save.keep-best 1 keeps it)"
        return [*rows, ("best weights", f"those of step {best.step}, {value}, {kept}")]
    return [*rows, ("best checkpoint", f"{run.folder.checkpoint(best.step)}, {value}")]
