"""Check the machine and the configuration of a run before it starts, and print a table.

    python train/doctor.py [PRESET] [any flags of train/main.py]
    torchrun --standalone --nproc_per_node=8 train/doctor.py gpt2 --data data/fineweb_edu

Start it like the run itself: it checks the same ranks, GPUs, folders and files. It also does the
dry run, in a folder next to `--out` that it deletes.
Exit code 0: all checks passed (there may be warnings); 1: a check failed; 2: the command line is
wrong.
"""

import logging
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from parallel.collectives import broadcast_object
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from parallel.shared_errors import RANK_0_SECONDS, SharedError
from storage.locks import has_locks
from storage.run_folder import RunFolder
from train.build import build_run
from train.checkpoints.disk_space import space_for_checkpoints
from train.command_line.parse import parse
from train.config import Config
from train.memory.forecast import device_memory
from train.preflight.dry_run import dry_run_parts
from train.preflight.inputs import Inputs, check_inputs
from train.preflight.machine_checks import (
    MachineCheck,
    check_arithmetic,
    check_clocks,
    check_devices,
    check_reduction,
    check_versions,
)
from train.preflight.needs import memory_needed, time_needed
from train.recovery.ending import is_peer_failure

_CHECK_FAILED_CODE = 1
_DESCRIPTION = """Check the machine and the configuration of a run before it starts; the options are
those of train/main.py.

It checks versions, devices, clocks, arithmetic and the sum over all ranks; whether the run folder
can be written and which run is there; data against their manifest, settings against data and run;
free space for the checkpoints; and it does the dry run of every part, with tiny inputs. Nothing is
trained, and no file stays. Exit code 0: ready to start; 1: a check failed; 2: wrong options."""
log = logging.getLogger("train")


def run_checks(config: Config, ranks: Ranks) -> list[MachineCheck]:
    """Run every check. All ranks must call this together."""
    found = [
        *check_versions(),
        *check_devices(ranks),
        check_clocks(ranks),
        check_arithmetic(ranks),
        check_reduction(ranks),
        check_run_folder(config, ranks),
    ]
    inputs, data = check_data(config, ranks)
    found.append(data)
    if inputs is not None:
        found += [check_free_space(config, inputs, ranks), *check_dry_run(config, ranks, inputs)]
    return found


def check_run_folder(config: Config, ranks: Ranks) -> MachineCheck:
    """Whether the run folder can be written, and whether another process writes to it."""
    found = broadcast_object(_run_folder(config.out) if ranks.is_main else None)
    assert found is not None
    return found


def _run_folder(out: Path) -> MachineCheck:
    folder, name = RunFolder(out), "run folder"
    scratch = _scratch_of(out)
    probe = scratch / "probe"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"written")
        locks = has_locks(probe)
        shutil.rmtree(scratch)
    except OSError as error:
        return MachineCheck(name, "fail", f"{out.parent} cannot be written: {error}")
    if locks and folder.is_locked():
        return MachineCheck(name, "fail", f"{out} is being written by another run")
    status = folder.read_status()
    if status is None and folder.status.exists():
        text = f"{folder.status} is damaged; a start sets it aside and continues"
        return MachineCheck(name, "warn", text)
    verdict, text = "ok", f"{out} is new"
    if status is not None:
        state, step = status.get("state"), status.get("step")
        text = f"{out} contains a run, {state} at step {step}, which would be resumed"
    if not locks:
        verdict = "warn"
        text += "; its file system has no locks, so make sure that no other run writes there"
    return MachineCheck(name, verdict, text)


def _scratch_of(out: Path) -> Path:
    """A folder on the run's disk for the files that the doctor writes and deletes."""
    # Next to the run folder, not in it: the doctor must not change a run.
    return out.absolute().with_name(f".{out.name}.doctor")


def check_data(config: Config, ranks: Ranks) -> tuple[Inputs | None, MachineCheck]:
    """Configuration and data, checked as a start checks them; returns the checked inputs too."""
    try:
        inputs = check_inputs(config, ranks)
    except ValueError as error:
        return None, MachineCheck("data and configuration", "fail", str(error))
    tokens = inputs.data.tokens
    text = f"{tokens:,} training tokens as in the manifest ({config.data_check}); "
    return inputs, MachineCheck("data and configuration", "ok", text + f"{inputs.steps:,} steps")


def check_free_space(config: Config, inputs: Inputs, ranks: Ranks) -> MachineCheck:
    """Whether the checkpoints fit on the disk; warns if less than twice their size is free."""
    space = broadcast_object(
        space_for_checkpoints(RunFolder(config.out), config, inputs.network, inputs.steps)
    )
    text = (
        f"{space.free / 1e9:.1f} GB for {space.checkpoints + 1} checkpoints of "
        f"{space.checkpoint_bytes / 1e9:.2f} GB = {space.needed / 1e9:.1f} GB"
    )
    too_little, tight = space.free < space.needed, space.free < 2 * space.needed
    return MachineCheck("free space", "fail" if too_little else "warn" if tight else "ok", text)


def check_dry_run(config: Config, ranks: Ranks, inputs: Inputs) -> list[MachineCheck]:
    """The dry run of the run itself, in another folder, and what memory and time it will need.

    Any error in it makes a failed check. A rank other than 0 also logs its own error.
    """
    scratch = _scratch_of(config.out)
    run, room = None, device_memory(ranks)
    try:
        fresh = replace(config, out=scratch, branch=None)
        run = build_run(fresh, ranks, replace(inputs, finished=False))
        done, seconds = dry_run_parts(run)
        found = MachineCheck("dry run", "ok", f"{', '.join(done)} in {seconds:.1f} s")
        steps_done = (RunFolder(config.out).read_status() or {}).get("step", 0)
        return [found, memory_needed(run, room), time_needed(run, steps_done)]
    except Exception as error:  # such as out of memory: the rest of the table is still useful
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if not (ranks.is_main or isinstance(error, SharedError) or is_peer_failure(error)):
            log.error("dry run: %s", text)
        return [MachineCheck("dry run", "fail", text)]
    finally:
        if run is not None:
            run.close()
        if ranks.is_main:
            shutil.rmtree(scratch, ignore_errors=True)


def format_table(found: list[MachineCheck]) -> str:
    """The checks as a text, one line each."""
    width = max(len(check.name) for check in found)
    return "\n".join(f"{f.verdict:<4}  {f.name:<{width}}  {f.text}" for f in found)


def main() -> None:
    """Run the checks, print the table, and print in one line whether the run can start."""
    silence_other_ranks()
    with user_errors():
        config = parse(sys.argv[1:], "train/doctor.py", _DESCRIPTION)
        ranks = start(config.device, deterministic=config.deterministic)
        found = run_checks(config, ranks)
    failed = [check.name for check in found if check.verdict == "fail"]
    warned = [check.name for check in found if check.verdict == "warn"]
    verdict = f"do not start: {', '.join(failed)}" if failed else "ready to start"
    if warned:
        verdict += f" (look at: {', '.join(warned)})"
    log.info("\n%s\n\n%s", format_table(found), verdict)
    stop()
    if failed:
        if not ranks.is_main:  # torchrun ends rank 0, which prints the table, when another exits
            time.sleep(RANK_0_SECONDS)
        sys.exit(_CHECK_FAILED_CODE)


if __name__ == "__main__":
    main()
