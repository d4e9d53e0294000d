"""What a run will need, measured or predicted before it starts: memory and time."""

import time

from model.estimates.memory import USABLE_SHARE
from storage.terminal.short_times import short_time
from train.preflight.dry_run import training_step
from train.preflight.machine_checks import MachineCheck
from train.run import Run

_GIB = 2**30


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
    """The time of the steps after `done`, by one micro-step that is timed. All ranks call this.

    Call it after a dry run, which has compiled and warmed up what it times.
    """
    began = time.perf_counter()
    training_step(run)
    seconds = time.perf_counter() - began
    left, micro_steps = max(run.steps - done, 0), run.plan.grad_accum_steps
    step = seconds * micro_steps
    text = (
        f"about {short_time(left * step)} for {left:,} steps of {step:.3g} s ({micro_steps} x a "
        "micro-step, timed once), without evaluation and saving"
    )
    return MachineCheck("time", "ok", text)
