"""Starts a real SLURM cluster of two nodes on this machine, in a temporary folder.

It needs root and Debian's packages. The nodes are named 127.0.0.2 and 127.0.0.3, which resolve
without an entry in /etc/hosts. Each claims to have 64 cores and 4 GPUs, which SLURM does not check.
proctrack/pgid needs no cgroups and sends signals like the usual proctrack/cgroup: a SIGTERM at the
end of a job goes to the batch shell and each task, not to all their children.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.launching import REPO
from tests.slurm.keeper import kill_marked

NODES = ("127.0.0.2", "127.0.0.3")
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

POLLS_BEFORE_START = 50  # at most ten polls a second

# GPUs need device files. These four exist on every machine, and no process opens them.
GPUS = "AutoDetect=off\n" + "".join(
    f"Name=gpu File=/dev/{n}\n" for n in ("null", "zero", "full", "tty")
)

CONFIG = """
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
MinJobAge=3600
FirstJobId={first_job}
GresTypes=gpu
NodeName=DEFAULT CPUs=64 RealMemory=200000 Gres=gpu:4
NodeName={nodes[0]} NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[0]}
NodeName={nodes[1]} NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no cluster can run here; empty if one can. Installs SLURM with apt if needed."""
    if os.geteuid() != 0:
        return "a throw-away SLURM needs root"
    lacking = [command for command in COMMANDS if shutil.which(command) is None]
    if not lacking:
        return ""
    if shutil.which("apt-get") is None:
        return f"no {', '.join(lacking)} here and no apt-get to install SLURM with"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "-qq", "-y", "install", "--no-install-recommends", "slurm-wlm", "munge"]
    for command in (["apt-get", "-qq", "update"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"apt-get cannot install SLURM: {done.stderr.strip()}"


def wait_until(holds: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Poll every tenth of a second until `holds()`; `what` gives the text of the failure."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what()}"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports on which no process listens at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass(frozen=True)
class Job:
    """A submitted job (or one task of an array)."""

    cluster: "Cluster"
    id: str
    output: Path

    @property
    def facts(self) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        line = self.cluster.command("scontrol", "show", "job", "-o", self.id)
        return dict(re.findall(r"(\S+?)=(\S*)", line))

    @property
    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED …"""
        return self.facts["JobState"]

    @property
    def restarts(self) -> int:
        """Number of times that the job was requeued."""
        return int(self.facts["Restarts"])

    @property
    def text(self) -> str:
        """The output of the job so far."""
        return self.output.read_text() if self.output.exists() else ""

    def wait_for(self, holds: Callable[[], object], seconds: float = 60) -> None:
        """Wait until `holds()`. A requeued job is started after five seconds."""
        # SLURM would start a requeued job after two minutes. Starting it at once fails: the exit of
        # the old batch script may still be on its way to the controller, which would take it for
        # the exit of the new one (in 3 of 36 requeued jobs, see bench/LOG.md).
        polls = 0

        def looked() -> object:
            nonlocal polls
            facts = self.facts
            waits = facts["JobState"] == "PENDING" and facts["Reason"] == "BeginTime"
            polls = polls + 1 if waits else 0
            if polls > POLLS_BEFORE_START:
                self.cluster.command("scontrol", "update", f"JobId={self.id}", "StartTime=now")
            return holds()

        wait_until(looked, seconds, lambda: f"{self.facts}\n{self.text}")

    def ends(self, seconds: float = 240) -> str:
        """Wait for the end of the job; returns its state."""
        self.wait_for(lambda: self.state in ENDED, seconds)
        return self.state


class Cluster:
    """The daemons and their folder. keeper.py ends them when this process ends for any reason."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm_"))
        self.folder.chmod(0o755)  # munge requires that its socket is accessible
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.keeper = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("keeper.py"), self.folder],
            env=self.environment,
            stdin=subprocess.PIPE,
        )
        self.environment |= {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "RATCHET": str(REPO),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def start(self) -> "Cluster":
        """Configure, start the daemons, wait for both nodes."""
        controller_port, *ports = free_ports(3)
        # The rendezvous port is computed from the job's number, so each cluster has other numbers.
        first_job = random.randrange(1000, 9000)
        text = CONFIG.format(
            folder=self.folder,
            host=socket.gethostname(),
            nodes=NODES,
            first_job=first_job,
            controller_port=controller_port,
            ports=ports,
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(GPUS)
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        for name in ("state", *(f"spool_{node}" for node in NODES)):
            (self.folder / name).mkdir()
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        files["seed-file"] = "seed"
        options = (f"--{option}={self.folder}/munge.{name}" for option, name in files.items())
        self._daemon("munged", "munged", "--foreground", *options)
        wait_until((self.folder / "munge.socket").exists, 20, self.logs)
        self._daemon("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        return self

    def stop(self) -> None:
        """End all processes and wait for them."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        for process in (self.keeper, *self.daemons.values()):
            process.wait(timeout=30)

    def start_node(self, node: str) -> None:
        """Start a node's daemon and wait until the controller may use it."""
        self._daemon(node, "slurmd", "-D", "-N", node)
        wait_until(lambda: self.node_state(node) in {"IDLE", "MIXED", "ALLOCATED"}, 60, self.logs)

    def lose_node(self, node: str) -> None:
        """Kill all processes of a node, like a power failure: daemon, steps and ranks."""
        self.daemons[node].kill()
        kill_marked(f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.folder}/slurm.conf")
        self.daemons[node].wait()

    def node_state(self, node: str) -> str:
        """IDLE, MIXED, DOWN …"""
        done = self._run("sinfo", "-h", "-o", "%T", "-n", node)
        return done.stdout.strip().upper()

    def submit(self, script: str, *arguments: object, sbatch: list[str], **more: str) -> Job:
        """`sbatch SBATCH launch/slurm/SCRIPT ARGUMENTS` with `more` environment variables."""
        folder = Path(tempfile.mkdtemp(prefix="job ", dir=self.folder))
        options = ["--parsable", f"--output={folder}/output", *sbatch]
        words = [*options, f"{REPO}/launch/slurm/{script}", *map(str, arguments)]
        return Job(self, self.command("sbatch", *words, **more).strip(), folder / "output")

    def command(self, *words: str, **more: str) -> str:
        """Run one of SLURM's commands; returns its output."""
        done = self._run(*words, **more)
        assert done.returncode == 0, f"{words}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        """The last lines of each daemon."""
        texts = {path.name: path.read_text()[-1500:] for path in self.folder.glob("*.out")}
        return "\n".join(f"--- {name}\n{text}" for name, text in texts.items())

    def _run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **more}
        return subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=60, cwd=self.folder
        )

    def _daemon(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("a") as log:
            self.daemons[name] = subprocess.Popen(
                words,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
