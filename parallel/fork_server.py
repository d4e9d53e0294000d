"""Runs scripts in processes forked from one that has imported what they need.

Importing torch takes seconds, a fork milliseconds. A script that is started so has its own process,
environment, folder, output and exit code; only the imports are shared. The Hub's library must not
be imported before, because it reads its address and offline switch at import. `WarmProcess` of
warm_process.py starts and uses this script: its words are a socket's number and the modules.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from types import ModuleType
from typing import Any

from parallel.warm_process import MAX_MESSAGE

_POLL_SECONDS = 0.02


def _serve(channel: socket.socket) -> list[str]:
    """Fork once for each job of every list that arrives; answer with pids, then with exit codes.

    Returns in a child, with the command that it must run. Ends when the other side closes.
    """
    while True:
        message, files, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 3)
        if not message:
            os._exit(0)
        pids = []
        for job in json.loads(message):
            pids.append(os.fork())
            if pids[-1] == 0:
                channel.close()
                return _become(job, files)
        for file in files:
            os.close(file)
        with suppress(BrokenPipeError):  # whoever asked has ended; `_exit_codes` stops the jobs
            channel.send(json.dumps(pids).encode())
        codes = _exit_codes(pids, channel)
        with suppress(BrokenPipeError):
            channel.send(json.dumps(codes).encode())


def _become(job: dict[str, Any], files: list[int]) -> list[str]:
    """Use the input, output, environment and folder of a job."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    return job["words"]


def _exit_codes(pids: list[int], channel: socket.socket) -> list[int]:
    """Wait for all processes. If one fails, stop the others, as torchrun does.

    Also stops them, and then ends, once the other side has closed: nobody waits for them any more.
    """
    codes: dict[int, int] = {}
    abandoned = False
    while len(codes) < len(pids):
        pid, status = os.waitpid(-1, 0 if abandoned else os.WNOHANG)
        if pid != 0:
            codes[pid] = os.waitstatus_to_exitcode(status)
            stop = codes[pid] != 0
        else:
            # Nothing else comes while a job runs.
            stop = abandoned = bool(select.select([channel], [], [], _POLL_SECONDS)[0])
        if stop:
            for other in set(pids) - set(codes):
                os.kill(other, signal.SIGTERM)
    if abandoned:
        os._exit(0)
    return [codes[pid] for pid in pids]


def _run(words: list[str]) -> int:
    """Run a script; returns the exit code that Python would give."""
    try:
        if words[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *words[2:]], ""
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), vars(main))
        else:
            sys.argv = words
            if not sys.flags.safe_path:  # else no script's folder is searched
                sys.path[0] = os.path.dirname(words[0])
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


def _leave(code: int) -> None:
    """Exit as Python does, but without destroying the imported modules."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Import the modules, then fork for each job."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        __import__(name)
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    assert threads == 1, f"{threads} threads: a fork has one, but the locks of all"
    gc.freeze()  # otherwise a garbage collection in a child would copy all memory
    _leave(_run(_serve(channel)))


if __name__ == "__main__":
    main()
