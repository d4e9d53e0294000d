"""A dry run before step 1: every part of the run once, on tiny inputs, and then undone.

What would fail at step 5,000 fails in the first minute. The run's state stays the same bit for bit:
the device skips the update, and everything else only reads the weights.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from safetensors.torch import load_file

from data_prep.order.windows import read_windows
from eval.subject import Subject
from eval.tasks.mixture_loss import mixture_loss
from eval.tasks.registry import run_tasks
from parallel.collectives import StopAgreed, raise_on_all_ranks
from parallel.shared_errors import SharedError
from storage.checkpoint_folder import verify_checkpoint
from storage.exit_codes import PREEMPTED_CODE
from storage.run_folder import RunFolder
from train.checkpoints.checkpoint import write_checkpoint
from train.checkpoints.host_copy import OPTIMIZER, WEIGHTS, state_tensors
from train.checkpoints.run_position import load_position
from train.evaluation import shared_samples
from train.recovery.ending import is_peer_failure
from train.run import Run
from train.step import as_tensor

_ITEMS = 2  # of each task, for each rank
_COMPILERS = ("torch._inductor", "torch._dynamo")  # modules of what torch.compile raises
_TOKENS = 2  # sampled for each prompt
log = logging.getLogger(__name__)


def dry_run(run: Run) -> None:
    """Dry run of a run that has not begun. A resumed run had its dry run before.

    Raises: ValueError naming the part that failed. The run is closed then.
    """
    if run.step > 0 or not run.config.rehearsal:
        return
    try:
        done, seconds = dry_run_parts(run)
    except StopAgreed:
        return
    except BaseException as error:
        stopped = isinstance(error, SystemExit) and error.code == PREEMPTED_CODE
        if run.ranks.is_main:
            reason = run.stop.reason if stopped else str(error)
            run.folder.write_status("preempted" if stopped else "failed", run.step, reason)
        run.close()
        raise
    log.info("dry run of %.0f s: every part works:", seconds)
    log.info("  %s", ", ".join(done))


def dry_run_parts(run: Run) -> tuple[list[str], float]:
    """Execute the parts; returns their names and the seconds they took.

    Raises: ValueError on every rank, naming the first part that failed.
    """
    began = time.perf_counter()
    done = []
    for name, part, by_all in PARTS:
        if not _is_needed(run, name):
            continue
        error = None
        try:
            if by_all or run.ranks.is_main:
                part(run)
        except StopAgreed:
            raise
        except Exception as found:  # of any kind: it would have come later too
            error = _part_error(name, found)
        if by_all and error is not None:
            raise error  # torchrun ends the ranks that wait for this one inside the part
        if not by_all:
            raise_on_all_ranks(error)
        done.append(name)
    return done, time.perf_counter() - began


def _part_error(name: str, error: Exception) -> ValueError:
    """The error for a part that failed. If a peer died, the peer's own log has the cause."""
    what = f"({type(error).__name__}: {error})"
    if is_peer_failure(error):
        log.error("the dry run's %s lost another rank %s", name, what)  # which may be rank 0
        return SharedError(
            f"the dry run's {name} lost another rank {what}; look at that rank's log"
        )
    kind = SharedError if isinstance(error, SharedError) else ValueError
    cure = "leave the dry run out with --no-rehearsal"
    if type(error).__module__.startswith(_COMPILERS) or "C++ compiler" in str(error):
        cure = "train without the compiler: --compile off"
    return kind(
        f"the dry run's {name} failed {what}, so the run would have failed later; mend that, or "
        f"{cure}"
    )


def _is_needed(run: Run, name: str) -> bool:
    """Whether the run will ever execute this part."""
    config = run.config
    return {
        "validation": config.eval.every > 0,
        "tasks": config.eval.tasks_every > 0 and bool(config.eval.tasks),
        "samples": config.sample.every > 0,
    }.get(name, True)


def training_step(run: Run) -> None:
    """One micro-step on the run's first windows, its reduction, and an update that is skipped."""
    plan = run.plan
    read = read_windows(run.loader.stream, 0, plan.micro_batch, plan.context_length)
    loss = float(run.learner.trial_step(as_tensor(read)))
    if not math.isfinite(loss):
        raise ValueError(f"the loss of the first windows is {loss}")


def validation(run: Run) -> None:
    """One micro-batch of validation windows for each rank."""
    plan = run.plan
    mixture_loss(
        _plain_subject(run),
        run.data,
        tokens=min(
            run.config.eval.validated_tokens,
            plan.micro_batch * plan.world_size * plan.context_length,
        ),
        context_length=plan.context_length,
        micro_batch=plan.micro_batch,
        dtype=run.learner.dtype,
    )


def tasks(run: Run) -> None:
    """A few items of each task."""
    items = _ITEMS * run.plan.world_size
    items = min(items, run.eval_options.items or items)
    run_tasks(_plain_subject(run), replace(run.eval_options, items=items), run.config.eval.tasks)


def samples(run: Run) -> None:
    """The first tokens of all samples."""
    shared_samples(run, min(_TOKENS, run.config.sample.max_tokens), run.config.seed)


def checkpoint(run: Run) -> None:
    """A complete checkpoint beside the run's own: copied, written, verified, read back, deleted.

    The host copy's memory stays allocated, so the first real save does not wait for it.
    """
    folder = RunFolder(run.folder.path / ".rehearsal")
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.path.mkdir()
    try:
        state = state_tensors(run.model, run.learner.optimizer)
        copy = run.saver.host_copy.take(state)
        run.saver.host_copy.wait()
        path = write_checkpoint(folder, run.contents(copy))
        verify_checkpoint(path)
        load_position(path)
        for prefix, name in ((WEIGHTS, "model"), (OPTIMIZER, "optimizer")):
            for key, tensor in load_file(path / f"{name}.safetensors").items():
                if not torch.equal(tensor, state[prefix + key].cpu()):
                    raise ValueError(f"{path}: {key} was read back as something else")
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)


def logs(run: Run) -> None:
    """The status, and every writer of metrics."""
    written = run.folder.write_status("running", run.step)
    run.metrics.write_nothing()
    failing = [*run.metrics.failing(), *["the status"] * (not written)]
    if failing:
        raise OSError(f"{' and '.join(failing)} below {run.folder.path} cannot be written")


def _plain_subject(run: Run) -> Subject:
    """What evaluation sees, without stop requests: those end a dry run at once."""
    return replace(run.subject, ranks=run.ranks)


# Name, action, and whether all ranks execute it together.
PARTS: list[tuple[str, Callable[[Run], None], bool]] = [
    ("training step", training_step, True),
    ("validation", validation, True),
    ("tasks", tasks, True),
    ("samples", samples, True),
    ("checkpoint", checkpoint, False),
    ("logs", logs, False),
]
