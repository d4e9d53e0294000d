"""What a run will need, measured or predicted before it starts: memory and time."""

import time

from model.estimates.memory import USABLE_SHARE
from parallel.collectives import broadcast_object
from storage.terminal.short_times import short_time
from train.preflight.dry_run import training_step
from train.preflight.machine_checks import MachineCheck
from train.run import Run

_GIB = 2**30
_LONG_SECONDS = 1.0  # of a micro-step, which is then timed once; else the fastest of several counts
_MORE_ROUNDS = 3


def memory_needed(run: Run, room: int) -> MachineCheck:
    """The predicted peak of a rank, as model/cost.py counts it, beside the bytes it could use."""
    memory = run.forecast.predict(run.plan).memory
    on_cpu = run.ranks.device.type == "cpu"
    peak = memory.peak + (memory.host_copy if on_cpu else 0)
    text = (
        f"predicted peak {peak / _GIB:.1f} of {room / _GIB:.1f} GiB a rank "
        f"(micro-batch {run.plan.micro_batch})"
    )
    if not on_cpu:
        text += f"; while saving {memory.host_copy / _GIB:.1f} GiB of host memory"
    return MachineCheck("memory", "warn" if peak > USABLE_SHARE * room else "ok", text)


def time_needed(run: Run, done: int) -> MachineCheck:
    """The time of the steps after `done`, by a micro-step that is timed. All ranks call this.

    Call it after a dry run, which has compiled and warmed up what it times.
    """
    # Rank 0 decides for all ranks how often they make that step.
    seconds = broadcast_object(_timed(run))
    if seconds < _LONG_SECONDS:
        seconds = min(seconds, *(_timed(run) for _ in range(_MORE_ROUNDS)))
    left, micro_steps = max(run.steps - done, 0), run.plan.grad_accum_steps
    step = seconds * micro_steps
    text = (
        f"about {short_time(left * step)} for {left:,} steps of {step:.3g} s ({micro_steps} x a "
        "micro-step, timed just now), without evaluation and saving"
    )
    return MachineCheck("time", "ok", text)


def _timed(run: Run) -> float:
    """Seconds of one micro-step on all ranks, with an update that is skipped."""
    began = time.perf_counter()
    training_step(run)
    return time.perf_counter() - began
