"""Check a machine and a run before they cost anything: a table of what is well, odd or wrong.

    python train/doctor.py [PRESET] [any flags of train/main.py]
    torchrun --nproc_per_node=8 train/doctor.py gpt2 --data data/fineweb_edu

Start it like the run itself: it checks the same ranks, GPUs, folders and files, and rehearses the
run in a folder beside `--out` that it deletes. Exit code 0: nothing is wrong (there may be
warnings); 1: something is; 2: the command does not make sense.
"""

import logging
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from model.estimates.parameters import count_parameters
from parallel.collectives import broadcast_object
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from parallel.shared_errors import LAST_WORD_SECONDS, SharedError
from storage.locks import has_locks
from storage.run_folder import RunFolder
from train.build import build_run
from train.checkpoints.disk_space import space_for_checkpoints
from train.command_line import parse
from train.config import Config
from train.preflight.dry_run import dry_run_parts
from train.preflight.inputs import Inputs, check_inputs
from train.preflight.machine_checks import (
    MachineCheck,
    check_agreement,
    check_clocks,
    check_devices,
    check_reduction,
    check_versions,
)
from train.recovery.ending import is_peer_failure

SOMETHING_WRONG = 1
log = logging.getLogger("train")


def run_checks(config: Config, ranks: Ranks) -> list[MachineCheck]:
    """Every check in turn; all ranks go through them together."""
    found = [
        *check_versions(),
        *check_devices(ranks),
        check_clocks(ranks),
        check_agreement(ranks),
        check_reduction(ranks),
        check_run_folder(config, ranks),
    ]
    inputs, data = check_data(config, ranks)
    found.append(data)
    if inputs is not None:
        found += [check_room(config, inputs, ranks), check_rehearsal(config, ranks, inputs)]
    return found


def check_run_folder(config: Config, ranks: Ranks) -> MachineCheck:
    """Whether the run folder can be written, and nobody writes there."""
    found = broadcast_object(_run_folder(config.out) if ranks.is_main else None)
    assert found is not None
    return found


def _run_folder(out: Path) -> MachineCheck:
    folder, name = RunFolder(out), "run folder"
    scratch = scratch_of(out)
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
    try:
        status = folder.read_status()
    except ValueError as error:
        return MachineCheck(name, "fail", str(error))
    verdict, text = "ok", f"{out} is new"
    if status is not None:
        state, step = status.get("state"), status.get("step")
        text = f"{out} holds a run, {state} at step {step}, which would go on"
    if not locks:
        verdict = "warn"
        text += "; its file system has no locks, so see to it that no other run writes there"
    return MachineCheck(name, verdict, text)


def scratch_of(out: Path) -> Path:
    """A folder on the run's own disk for what the doctor writes."""
    return out.absolute().with_name(f".{out.name}.doctor")


def check_data(config: Config, ranks: Ranks) -> tuple[Inputs | None, MachineCheck]:
    """The configuration, the shards against their manifest, and what else a start would check."""
    try:
        inputs = check_inputs(config, ranks)
    except ValueError as error:
        return None, MachineCheck("data and configuration", "fail", str(error))
    tokens = inputs.data.split("train").tokens
    text = f"{tokens:,} training tokens as the manifest says ({config.data_check}); "
    return inputs, MachineCheck("data and configuration", "ok", text + f"{inputs.steps:,} steps")


def check_room(config: Config, inputs: Inputs, ranks: Ranks) -> MachineCheck:
    """Free space for the checkpoints that are kept: warns where it would do twice, but barely."""
    parameters = count_parameters(inputs.network).total
    room = broadcast_object(
        space_for_checkpoints(RunFolder(config.out), config.save, inputs.steps, parameters)
    )
    text = (
        f"{room.free / 1e9:.1f} GB for {room.checkpoints + 1} checkpoints of "
        f"{room.of_one / 1e9:.2f} GB = {room.needed / 1e9:.1f} GB"
    )
    short, barely = room.free < room.needed, room.free < 2 * room.needed
    return MachineCheck("free space", "fail" if short else "warn" if barely else "ok", text)


def check_rehearsal(config: Config, ranks: Ranks, inputs: Inputs) -> MachineCheck:
    """The run's own rehearsal, in a folder of its own.

    Whatever goes wrong in it is a finding; another rank's own is said in its log.
    """
    scratch = scratch_of(config.out)
    run = None
    try:
        fresh = replace(config, out=scratch)
        run = build_run(fresh, ranks, replace(inputs, finished=False))
        done, seconds = dry_run_parts(run)
        return MachineCheck("rehearsal", "ok", f"{', '.join(done)} in {seconds:.1f} s")
    except Exception as error:  # of compiling, of memory: the rest of the table is still worth it
        told = isinstance(error, ValueError)
        text = str(error) if told else f"{type(error).__name__}: {error}"
        if not (ranks.is_main or isinstance(error, SharedError) or is_peer_failure(error)):
            log.error("rehearsal: %s", text)
        return MachineCheck("rehearsal", "fail", text)
    finally:
        if run is not None:
            run.close()
        if ranks.is_main:
            shutil.rmtree(scratch, ignore_errors=True)


def table(found: list[MachineCheck]) -> str:
    """The findings, one a line, worst ones marked."""
    width = max(len(finding.name) for finding in found)
    return "\n".join(f"{f.verdict:<4}  {f.name:<{width}}  {f.text}" for f in found)


def main() -> None:
    """Examine, show the table, and say in one line whether to start."""
    silence_other_ranks()
    with user_errors():
        config = parse(sys.argv[1:], "train/doctor.py", "Check a machine and a run beforehand.")
        ranks = start(config.device, deterministic=config.deterministic)
        found = run_checks(config, ranks)
    wrong = [f.name for f in found if f.verdict == "fail"]
    odd = [f.name for f in found if f.verdict == "warn"]
    verdict = f"do not start: {', '.join(wrong)}" if wrong else "ready to start"
    if odd:
        verdict += f" (look at: {', '.join(odd)})"
    log.info("\n%s\n\n%s", table(found), verdict)
    stop()
    if wrong:
        if not ranks.is_main:  # torchrun ends rank 0 when another one leaves
            time.sleep(LAST_WORD_SECONDS)
        sys.exit(SOMETHING_WRONG)


if __name__ == "__main__":
    main()
