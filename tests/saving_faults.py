"""Kills saves at every phase or fills the disk, and records what is left afterwards.

It needs a process of its own, because it forks and limits itself:
python tests/saving_faults.py FOLDER [all]
"""

import json
import logging
import os
import resource
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from storage.checkpoint_folder import step_of
from storage.json_lines import read_lines
from storage.retention import Retention, SaveConfig
from storage.run_folder import RunFolder
from tests.runs import built, nano_config, set_step
from train.checkpoints.background_save import BackgroundSave
from train.checkpoints.host_copy import state_tensors
from train.loop import train

# Names of C functions that access the disk. A save is killed before each call of them.
TOUCHES = {
    *("open", "write", "flush", "close", "fsync", "mkdir", "rename", "replace", "symlink"),
    *("unlink", "rmdir", "remove", "chmod", "serialize_file", "scandir", "__exit__"),
}
UNLIMITED = resource.RLIM_INFINITY


def save(run, step):
    """Save as the background thread does: checkpoint, status, retention."""
    saver = BackgroundSave(run.folder, Retention(1, 0, 0, lambda path: None), run.saver.host_copy)
    set_step(run, step)
    saver._write(run.contents(state_tensors(run.model, run.learner.optimizer)), 0.0)
    return saver._error


def killed_before_call(run, step, number):
    """Fork a save that is killed before its n-th access to the disk; False if it has fewer."""
    child = os.fork()
    if child == 0:
        touched = 0

        def count(frame, event, function):
            nonlocal touched
            if event == "c_call" and function.__name__ in TOUCHES:
                touched += 1
                if touched == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        save(run, step)
        sys.setprofile(None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def killed_at_byte(run, step, byte):
    """Fork a save that is killed when a file grows beyond `byte` bytes; False if none does."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (byte, UNLIMITED))
        save(run, step)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGXFSZ


def state_after(run):
    """What a start would find: the checkpoint to resume from, `latest`, status, broken ones."""
    folder = RunFolder(run.folder.path)
    newest = folder.recover_newest_checkpoint()
    return {
        "resumed": newest and step_of(newest),
        "latest": step_of((folder.checkpoints / "latest").resolve(strict=True)),
        "status": folder.read_status()["step"],
        "set_aside": [path.name for path in folder.checkpoints.glob("*.broken*")],
    }


def restore(run, old):
    """Restore the folder as it was before the save: `old` is the only checkpoint."""
    run.folder.remove_unfinished()
    for path in run.folder.all_checkpoints():
        shutil.rmtree(path)
    assert save(run, old) is None


def run_kills(folder, every):
    """Kill saves of step 6 while step 4 is the newest checkpoint; returns the state after each."""
    run = built(nano_config(folder, steps=4))
    train(run)
    found = []
    for number in range(1, 1000, 1 if every else 5):
        if not killed_before_call(run, 6, number):
            break
        found.append({"way": "call", "at": number, **state_after(run)})
        if run.folder.recover_newest_checkpoint() != run.folder.checkpoint(4):
            restore(run, 4)
    restore(run, 4)
    for byte in range(0, 36_000, 1_500 if every else 7_000):
        if killed_at_byte(run, 6, byte):
            found.append({"way": "byte", "at": byte, **state_after(run)})
    run.folder.remove_unfinished()
    assert save(run, 6) is None
    found.append({"way": "none", "at": 0, **state_after(run)})
    run.close()
    return found


class LogCapture(logging.Handler):
    """Counts messages about failed saves and keeps the names of metric writers that failed."""

    def __init__(self):
        super().__init__()
        self.failed = 0
        self.failing, self.back, self.lost = set(), set(), 0

    def emit(self, record):
        message = record.getMessage()
        self.failed += "could not be written" in message
        if "cannot be written (OSError" in message:
            self.failing.add(message.split()[0])
        if "is written again" in message:
            self.back.add(message.split()[0])
            self.lost += int(message.split()[-3])


def run_limits(folder, limits):
    """Train with a save before each step. In every second step the size of files is limited."""
    config = nano_config(folder, steps=2 * len(limits) + 2, save=SaveConfig(1, 0, keep=3))
    run, captured, found = built(config), LogCapture(), []
    logging.getLogger().addHandler(captured)
    take = run.loader.next_step

    def limited():
        """Called once per step after its save has begun: records the last one, sets the limit."""
        run.saver.wait()
        odd = run.step % 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
        newest = run.folder.recover_newest_checkpoint()
        found.append(
            {
                "step": run.step,
                "limit": limits[run.step // 2 - 1] if run.step and not odd else None,
                "newest": newest and step_of(newest),
                "failed": captured.failed,
                "litter": len(list(run.folder.checkpoints.glob(".step_*"))),
            }
        )
        captured.failed = 0
        if odd and run.step // 2 < len(limits):
            limit = limits[run.step // 2]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, UNLIMITED))
        return take()

    run.loader.next_step = limited
    end = train(run)
    run.close()
    straight = replace(config, out=folder / "straight", save=SaveConfig(0, 0))
    other = built(straight)
    train(other)
    other.close()
    pairs = zip(run.model.parameters(), other.model.parameters(), strict=True)
    return {
        "end": end,
        "steps": found,
        "failing": sorted(captured.failing),
        "back": sorted(captured.back),
        "lost": captured.lost,
        "lines": [line["step"] for line in read_lines(run.folder.metrics)],
        "same": all(torch.equal(x, y) for x, y in pairs),
    }


def main():
    folder, every = Path(sys.argv[1]), sys.argv[2:] == ["all"]
    os.fsync = lambda descriptor: None  # only a process is killed, not the machine
    few = [0, 300, 9_000, 20_000]
    many = [*range(0, 3_000, 200), *range(3_000, 37_000, 2_000)]
    found = {
        "limits": run_limits(folder / "limits", many if every else few),
        "kills": run_kills(folder / "kills", every),
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
