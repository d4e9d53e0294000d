"""A process that has imported what scripts need, in whose forks they start at once.

A script started so differs from `python SCRIPT` only in its start, which takes milliseconds: it has
a process, an environment, a folder, streams and an exit code of its own.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

MAX_MESSAGE = 1 << 17  # bytes of what is said to the other process, and of its answer
# Below the range from which the kernel assigns ports, so that no other process gets one between
# the check and its use.
_PORTS = range(20_000, 32_000)


class WarmProcess:
    """One job at a time: a script in one process, or the same in several as ranks of one job.

    `modules` are imported once, in a process with this `environment` and `folder`, which a job may
    replace. What a library reads when it is loaded, such as OMP_NUM_THREADS, counts for all jobs.
    """

    def __init__(
        self, modules: Iterable[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self._environment = dict(environment)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = str(theirs.fileno())
        # pyarrow's allocator and NumPy's OpenBLAS would start threads, which a fork has not.
        variables = {
            "PYTHONPATH": str(folder),
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "parallel.fork_server", number, *modules],
            cwd=folder,
            env=self._environment | variables,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for who started this, and tells the jobs
        )
        theirs.close()

    def start(
        self,
        words: Sequence[str],
        streams: Sequence[IO[Any]],
        folder: Path,
        environments: Sequence[Mapping[str, str]],
    ) -> list[int]:
        """Start `words`, a script's path and arguments or `-c CODE`, once for each environment.

        All have the same three `streams` (input, output, errors). Returns their process numbers.
        Raises: RuntimeError if the process of the imports has ended.
        """
        jobs = [
            {"environment": dict(own), "folder": str(folder), "words": list(words)}
            for own in environments
        ]
        message = json.dumps(jobs).encode()
        try:
            socket.send_fds(self._channel, [message], [file.fileno() for file in streams])
            return self._receive()
        except (BrokenPipeError, ConnectionResetError, json.JSONDecodeError):
            raise RuntimeError(
                f"the process in whose forks runs start has ended with code {self._server.wait()}"
            ) from None

    def wait(self, seconds: float | None = None) -> list[int] | None:
        """The exit codes of the job's processes; None if they have not ended in time.

        If one fails, the others are stopped, as torchrun does.
        Raises: RuntimeError if the process of the imports has ended.
        """
        self._channel.settimeout(seconds)
        try:
            return self._receive()
        except (TimeoutError, BlockingIOError):
            return None
        except (ConnectionResetError, json.JSONDecodeError):
            raise RuntimeError(
                f"the process in whose forks runs start has ended with code {self._server.wait()}"
            ) from None
        finally:
            self._channel.settimeout(None)

    def close(self) -> None:
        """End the process of the imports; a job that still runs is asked to stop first."""
        self._channel.close()
        self._server.wait()

    def _receive(self) -> list[int]:
        return json.loads(self._channel.recv(MAX_MESSAGE))


def rank_environments(environment: Mapping[str, str], processes: int) -> list[dict[str, str]]:
    """The environment of each rank of a job on this machine, as torchrun sets it.

    A job of one process has none of those variables.
    """
    own = dict(environment)
    if processes == 1:
        return [own]
    size = str(processes)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return [
        own
        | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        | address
        for rank in map(str, range(processes))
    ]


def shared_environment(processes: int) -> dict[str, str]:
    """This process's environment for `processes` that run at the same time on this machine.

    They share out its cores, unless OMP_NUM_THREADS already says how many threads each has.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"OMP_NUM_THREADS": str(max(1, (cores or 1) // processes)), **os.environ}


def gpus_of_slot(slot: int, processes: int, gpus: int) -> dict[str, str]:
    """The variable that gives a job GPUs of its own, if several jobs share the `gpus` of a machine.

    Job `slot` takes `processes` of them, in turn; where there are fewer than all jobs want, jobs
    share some. Only those that CUDA_VISIBLE_DEVICES names are given out, if it is set.
    """
    if gpus <= processes:
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",")[:gpus] if named else [str(number) for number in range(gpus)]
    own = [names[(slot * processes + i) % len(names)] for i in range(processes)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)}


def signal_all(processes: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those of the processes that have not ended."""
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def _free_port() -> int:
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) != 0:
                return port
