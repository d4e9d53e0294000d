"""Starts the processes of a job on this machine like torchrun, and ends as they end.

    python parallel/launcher.py --standalone --nproc_per_node=8 train/main.py [...]

Takes torchrun's options. It differs in four points. An error is the sentence of the script, without
a traceback of the launcher. The exit code is that of the first process that failed. Nothing is
restarted after an exit code that says so (storage/exit_codes.py). It works where the name of this
machine does not resolve.
"""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from torch.distributed import DistError  # type: ignore[reportPrivateImportUsage]
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError
from torch.distributed.launcher import api

from parallel.addresses import choose_addresses
from parallel.job_variables import check_not_alone
from parallel.ranks import LAUNCHER
from storage.exit_codes import (
    FAILED_CODE,
    FINAL_CODES,
    INTERRUPTED_CODE,
    PEER_LOST_CODE,
    PREEMPTED_CODE,
)
from storage.terminal.standard_output import tolerate_lost_output
from storage.user_errors import exit_on_user_error

# torch's default, and the signals by which SLURM warns of the end of a job: one that torch does not
# handle would kill this process and leave the others running.
_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_GRACE_SECONDS = 30.0  # as torch gives to the processes after one has failed
# They report in log lines what this file prints itself.
_SILENT_LOGGERS = ("agent.server.api", "agent.server.local_elastic_agent", "multiprocessing.api")


class _Agent(LocalElasticAgent):
    """torch's agent, which starts and watches the processes; this one knows our exit codes."""

    codes: tuple[int, ...] = ()
    """How the processes ended that were last shut down."""
    patience = 75.0
    """Seconds for the rendezvous server to answer; torch's own limit is one of 60."""
    _unattended_since: float | None = None
    """Since when torch has been asking the rendezvous server about other machines."""

    def run(self, *words: Any, **more: Any) -> Any:  # type: ignore[override]
        """Run the job. Ends the launcher at once if the rendezvous server is gone."""
        threading.Thread(target=self._watch_for_silence, daemon=True).start()
        try:
            result = super().run(*words, **more)
        except RendezvousClosedError:
            raise
        except (RendezvousError, DistError) as error:
            # torch would try to leave the rendezvous, for minutes. The processes have ended by now.
            why = _first_line(error)
            _say(f"error: the machines lost their connection ({why}); start the job again")
            os._exit(exit_code(list(self.codes)) or FAILED_CODE)
        if result is None:
            raise RendezvousClosedError
        return result

    def _monitor_workers(self, worker_group: Any) -> Any:  # type: ignore[override]
        """Look after the processes; print what failed, and cancel a restart that cannot help."""
        self._unattended_since = None
        result: Any = super()._monitor_workers(worker_group)  # type: ignore[call-arg]
        if result.failures:
            self._report_failures(list(result.failures.values()), result.failures)
        elif result.state == WorkerState.HEALTHY:
            self._unattended_since = time.monotonic()
        return result

    def _watch_for_silence(self) -> None:
        """End the launcher if processes have ended while the rendezvous server is silent."""
        # Its machine may be lost. torch's store then waits a quarter of an hour for TCP to give up,
        # also after its own limit: it asks to cancel the question, and waits for that answer.
        while True:
            time.sleep(1)
            since = self._unattended_since
            if since is None or time.monotonic() - since < self.patience:
                continue
            processes = self._processes()
            codes = [code for process in processes.values() if (code := process.poll()) is not None]
            if any(codes) or len(codes) == len(processes):
                _say("error: the machines lost their connection; start the job again")
                os._exit(exit_code(self._end(processes)))

    def _processes(self) -> dict[int, subprocess.Popen[Any]]:
        """The processes by their local rank."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return {local: handler.proc for local, handler in handlers.items()}

    def _end(self, processes: Mapping[int, subprocess.Popen[Any]]) -> list[int]:
        """End the processes that still run; returns all exit codes, those of failures first."""
        ended = [code for process in processes.values() if (code := process.poll()) is not None]
        running = [process for process in processes.values() if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)
            process.kill()
        return [*ended, *(process.wait() for process in running)]

    def _report_failures(
        self, failures: list[ProcessFailure], by_rank: Mapping[int, ProcessFailure]
    ) -> None:
        final = is_final([failure.exitcode for failure in failures])
        rank, first = next(
            (pair for pair in by_rank.items() if pair[1].exitcode != PEER_LOST_CODE),
            (next(iter(by_rank)), failures[0]),
        )
        if not final:
            left = self._remaining_restarts
            what = f"; all ranks are started again ({left} restarts left)" if left else ""
            _say(f"rank {rank} {_how_it_ended(first.exitcode)}{what}")
        else:
            self._remaining_restarts = 0

    def _shutdown(self, *words: Any, **more: Any) -> None:
        """End the processes; note how each ended, and name those that had to be killed."""
        self._unattended_since = None
        processes = self._processes()
        alive = [local for local, process in processes.items() if process.poll() is None]
        with _passing_signals_on(processes.values()):
            super()._shutdown(*words, **more)
        codes = {local: process.poll() for local, process in processes.items()}
        for local in alive:
            if codes[local] == -signal.SIGKILL:
                _say(f"local rank {local} did not end in time after a signal and was killed")
        type(self).codes = tuple(code for code in codes.values() if code is not None)


@contextmanager
def _passing_signals_on(processes: Iterable[subprocess.Popen[Any]]) -> Iterator[None]:
    """Pass every further signal on to the processes, which have sessions of their own.

    So they get a second Ctrl-C too. torch would send SIGTERM instead, and wait.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    numbers = [signal.Signals[name] for name in (*_SIGNALS, "SIGHUP")]
    before = {number: signal.getsignal(number) for number in numbers}
    handled = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handled:
        signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def is_final(codes: list[int]) -> bool:
    """Whether nothing may be started again after these exit codes, the first failure's first."""
    # A rank that has not begun yet ends as preempted if it gets the SIGTERM that follows the crash
    # of another, so that code counts only if nothing failed before.
    return codes[0] in FINAL_CODES or any(code in FINAL_CODES - {PREEMPTED_CODE} for code in codes)


def exit_code(codes: list[int]) -> int:
    """The exit code of the launcher from those of its processes, the first failure's first."""
    failed = [code for code in codes if code != 0]
    told = [code for code in failed if code in FINAL_CODES] if failed and is_final(failed) else []
    cause = [code for code in failed if code != PEER_LOST_CODE]
    code = next(iter([*told, *cause, *failed]), 0)
    return 128 - code if code < 0 else code  # killed by a signal, by the convention of shells


def main() -> None:
    """Start the processes, wait for their end, exit as they did."""
    tolerate_lost_output()
    with exit_on_user_error(ValueError):
        arguments = _parse()
    for name in _SILENT_LOGGERS:
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    os.environ[LAUNCHER] = str(os.getpid())
    if hasattr(api, "LocalElasticAgent"):
        api.LocalElasticAgent = _Agent  # type: ignore[attr-defined]
    sys.exit(_run(arguments))


def _parse() -> Namespace:
    """torchrun's options. Raises: ValueError for one that cannot be."""
    parser = torchrun.get_args_parser()
    parser.prog = "parallel/launcher.py"
    arguments = parser.parse_args()
    if arguments.nproc_per_node.isdigit() and int(arguments.nproc_per_node) < 1:
        raise ValueError(
            f"nproc_per_node={arguments.nproc_per_node} starts no process; give 1 or more"
        )
    try:
        fewest, nodes = torchrun.parse_min_max_nnodes(arguments.nnodes)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"nnodes={arguments.nnodes} is no number of machines") from error
    if not 0 < fewest <= nodes:
        raise ValueError(f"nnodes={arguments.nnodes} starts no process; give 1 or more")
    check_not_alone(os.environ, together=nodes)
    if getattr(arguments, "signals_to_handle", None) == parser.get_default("signals_to_handle"):
        hangup = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # ignored under nohup
        arguments.signals_to_handle = ",".join((*_SIGNALS, *["SIGHUP"] * hangup))
    if limit := re.search(r"\bread_timeout=([0-9]+)", arguments.rdzv_conf):
        _Agent.patience = float(limit[1]) + 15
    interface = choose_addresses(arguments, nodes)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return arguments


def _run(arguments: Namespace) -> int:
    """Run the job; returns the exit code."""
    place = f"the rendezvous server {arguments.rdzv_endpoint or arguments.master_addr}"
    try:
        with exit_on_user_error(ValueError, AssertionError):
            torchrun.run(arguments)
    except ChildFailedError as error:
        return exit_code([failure.exitcode for failure in error.failures.values()])
    except SignalException as error:
        return exit_code(list(_Agent.codes)) if _Agent.codes else 128 + error.sigval
    except KeyboardInterrupt:
        return INTERRUPTED_CODE
    except RendezvousClosedError:
        _say("another machine has ended this job")
        return exit_code(list(_Agent.codes)) or FAILED_CODE
    except (RendezvousError, socket.gaierror) as error:
        why = _first_line(error.__cause__ or error)
        _say(f"error: {place} does not answer ({why}); check that every machine reaches it")
        return FAILED_CODE
    return 0


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}, see above"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"


def _say(sentence: str) -> None:
    sys.stderr.write(f"[{socket.gethostname()}] {sentence}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
