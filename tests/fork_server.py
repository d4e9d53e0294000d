"""Runs scripts in processes forked from one that has imported torch and our files already.

Importing torch takes seconds, a fork milliseconds. A script so started is a process of its own: its
environment, folder, output and exit code are its own, and only the imports were done before.
Reading its address and offline switch at import, the Hub's library is not among them.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from types import ModuleType
from typing import Any

LARGEST_MESSAGE = 1 << 17
PRELOADED = (
    "torch._dynamo",
    "torch.distributed.run",
    "torch.nn.parallel",
    "train.main",
    "train.doctor",
    "eval.main",
    "eval.generate",
)


def serve(channel: socket.socket) -> list[str]:
    """Fork for every list of jobs that comes, and answer with the pids, then the exit codes.

    Returns in a child, with the words it is to run. Ends when the other side does.
    """
    while True:
        message, files, _, _ = socket.recv_fds(channel, LARGEST_MESSAGE, 3)
        if not message:
            os._exit(0)
        pids = []
        for job in json.loads(message):
            pids.append(os.fork())
            if pids[-1] == 0:
                channel.close()
                return become(job, files)
        for file in files:
            os.close(file)
        channel.send(json.dumps(pids).encode())
        channel.send(json.dumps(exit_codes(pids)).encode())


def become(job: dict[str, Any], files: list[int]) -> list[str]:
    """Take on a job's input, output, environment and folder."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    return job["words"]


def exit_codes(pids: list[int]) -> list[int]:
    """Wait for all; one that fails takes the others along, as under torchrun."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid] != 0:
            for other in set(pids) - set(codes):
                os.kill(other, signal.SIGTERM)
    return [codes[pid] for pid in pids]


def run(words: list[str]) -> int:
    """The exit code of a script, as Python itself would give it."""
    try:
        if words[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *words[2:]], ""
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), vars(main))
        else:
            sys.argv, sys.path[0] = words, os.path.dirname(words[0])
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(code: int) -> None:
    """End as Python does, but without taking apart what was imported."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for name in PRELOADED:
        __import__(name)
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    assert threads == 1, f"{threads} threads: a fork would have one, and the others' locks"
    gc.freeze()  # or every collection in a child would copy all of it
    leave(run(serve(socket.socket(fileno=int(sys.argv[1])))))
