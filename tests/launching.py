"""Starts the project's scripts in processes of their own, as a user would."""

import atexit
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tests.fork_server import MAX_MESSAGE

REPO = Path(__file__).parent.parent
# One thread for each of two processes on two cores. HF_HUB_OFFLINE also turns telemetry off.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(REPO),
    "HF_HUB_OFFLINE": "1",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
# Below the range from which the kernel assigns ports, so that no other process gets one between
# the check and its use.
PORTS = range(20_000, 32_000)

_TORCH = find_spec("torch")
assert _TORCH is not None
assert _TORCH.origin is not None
TORCHRUN = Path(_TORCH.origin).parent / "distributed" / "run.py"

Done = subprocess.CompletedProcess[str]


def fresh_python(*arguments: str, timeout: float = 180) -> Done:
    """Run `python ARGUMENTS` in the repository."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPO,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def torchrun(processes: int, *arguments: str, timeout: float = 180) -> Done:
    """Run `torchrun --nproc_per_node=PROCESSES ARGUMENTS` in the repository.

    torchrun itself runs in a fork; its ranks are new processes.
    """
    words = ("--standalone", f"--nproc_per_node={processes}", *arguments)
    return _forked([ENVIRONMENT], (str(TORCHRUN), *words), timeout)


def python(
    *arguments: str,
    timeout: float = 180,
    typed: str = "",
    folder: Path = REPO,
    repo: Path = REPO,
    **variables: str,
) -> Done:
    """Run `python SCRIPT` or `python -c CODE` in a fork, which saves the seconds of its imports.

    `typed` is its standard input, and `variables` are added to the environment. `repo` may be a
    copy of the repository; it must not change after the first call.
    """
    environment = ENVIRONMENT | {"PYTHONPATH": str(repo)} | variables
    return _forked([environment], arguments, timeout, typed, folder, repo)


def together(processes: int, *arguments: str, timeout: float = 180) -> Done:
    """Run several ranks without torchrun, for tests that do not depend on it."""
    size = str(processes)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    environments = [
        ENVIRONMENT
        | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        | address
        for rank in map(str, range(processes))
    ]
    return _forked(environments, arguments, timeout)


def _free_port() -> int:
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) != 0:
                return port


@cache
def _fork_server(repo: Path) -> socket.socket:
    """The fork server of this test process for `repo`, started when it is first needed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = str(theirs.fileno())
    command = [sys.executable, "-m", "tests.fork_server", number]
    # pyarrow's allocator would start a thread, which does not exist in a fork.
    variables = {"PYTHONPATH": str(repo), "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    environment = ENVIRONMENT | variables
    server = subprocess.Popen(command, cwd=repo, env=environment, pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(lambda: (ours.close(), server.wait(10)))
    return ours


def _forked(
    environments: list[dict[str, str]],
    words: tuple[str, ...],
    timeout: float,
    typed: str = "",
    folder: Path = REPO,
    repo: Path = REPO,
) -> Done:
    """Run the same command in each environment, all at the same time, with a common output."""
    script = words[0] if words[0] == "-c" else str(repo / words[0])
    words = (script, *words[1:])
    jobs = [{"environment": e, "folder": str(folder), "words": words} for e in environments]
    server = _fork_server(repo)
    with (
        tempfile.TemporaryFile("w+") as stdin,
        tempfile.TemporaryFile("w+", errors="replace") as stdout,
        tempfile.TemporaryFile("w+", errors="replace") as stderr,
    ):
        stdin.write(typed)
        stdin.seek(0)
        streams = (stdin, stdout, stderr)
        socket.send_fds(server, [json.dumps(jobs).encode()], [file.fileno() for file in streams])
        pids = json.loads(server.recv(MAX_MESSAGE))
        codes = _codes(server, pids, timeout)
        for file in (stdout, stderr):
            file.seek(0)
        if codes is None:
            raise subprocess.TimeoutExpired(words, timeout, stdout.read(), stderr.read())
        code = next((code for code in codes if code != 0), 0)
        return subprocess.CompletedProcess(words, code, stdout.read(), stderr.read())


def _codes(server: socket.socket, pids: list[int], timeout: float) -> list[int] | None:
    """The exit codes; None if the processes did not end in time."""
    server.settimeout(timeout)
    try:
        return json.loads(server.recv(MAX_MESSAGE))
    except TimeoutError:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        server.settimeout(None)
        server.recv(MAX_MESSAGE)
        return None
    finally:
        server.settimeout(None)
