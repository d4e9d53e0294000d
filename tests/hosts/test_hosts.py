"""Training on several hosts under faults of network and hosts: same bits, no step lost.

All tests are in one file, because they share undisturbed runs and a file runs in one process.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from storage.exit_codes import PEER_LOST_CODE
from storage.retention import SaveConfig
from tests.data_sets import tiny_data_set
from tests.hosts.network import Host, Network, configure, missing
from tests.launching import REPO, torchrun
from tests.runs import flags, losses, starts, tiny_config
from tests.slurm.conftest import Outcome, outcome
from train.config import Config

STEPS = 60
OF_THREE = {"steps": 10, "batch_tokens": 96}  # a step on the slow network takes seconds
SAVE_EVERY = 10
PATIENCE_SECONDS = 240.0

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(missing()), reason=missing() or "hosts can be made"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set that all runs read."""
    folder = tmp_path_factory.mktemp("hosts data") / "data set"
    tiny_data_set(folder, documents=400, vocab=500)
    return folder


def config_of(data: Path, out: Path, **changes: object) -> Config:
    return tiny_config(data, out, **{"steps": STEPS, "save": SaveConfig(0, 0)} | changes)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Outcome]:
    """The same run in as many processes of one machine, from start to end."""
    found: dict[int, Outcome] = {}

    def run(processes: int) -> Outcome:
        if processes not in found:
            out = tmp_path_factory.mktemp("undisturbed") / "run"
            more = OF_THREE if processes == 3 else {}
            done = torchrun(processes, *flags(config_of(data, out, **more)))
            assert done.returncode == 0, done.stderr
            found[processes] = outcome(out)
        return found[processes]

    return run


@dataclass
class Job:
    """A run on all hosts of a network, one rank each, started as a user would."""

    network: Network
    config: Config
    port: int = 29_400
    pace: float = 0.1
    more: tuple[str, ...] = ()
    rendezvous: str = ""
    """torchrun's --rdzv-conf."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, *hosts: Host) -> None:
        """Start the launcher on these hosts."""
        first = self.network.hosts[0]
        endpoint = first.name if self.network.style == "debian" else first.address
        variables = {
            "RDZV_ENDPOINT": f"{endpoint}:{self.port}",
            "NODES": str(len(self.network.hosts)),
            "NPROC": "1",
            "MAX_RESTARTS": "5",
            "SCRIPT": "tests/slurm/paced.py",
            "PACE": str(self.pace),
            "PET_RDZV_CONF": self.rendezvous,
        }
        words = [*flags(self.config, *self.more)[1:], "--no-rehearsal"]
        script = str(REPO / "launch/node.sh")
        for host in hosts or self.network.hosts:
            self.processes[host.name] = host.start(script, *words, **variables)

    @property
    def step(self) -> int:
        """Number of metric lines so far."""
        path = self.config.out / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    @property
    def repeated(self) -> int:
        """Number of steps that were done again."""
        path = self.config.out / "metrics.discarded.jsonl"
        return path.read_text().count('"train/loss"') if path.exists() else 0

    @property
    def state(self) -> str:
        """`state` of status.json."""
        path = self.config.out / "status.json"
        return json.loads(path.read_text())["state"] if path.exists() else ""

    def wait_until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, self.network.logs()
            time.sleep(0.05)

    def reaches(self, step: int) -> None:
        """Wait until the run has this many metric lines."""
        self.wait_until(lambda: self.step >= step or self.has_ended())
        assert self.step >= step, self.network.logs()

    def has_ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes.values())

    def ends_well(self) -> None:
        """Wait for the end on all hosts; each launcher must succeed."""
        self.wait_until(self.has_ended)
        codes = {name: process.returncode for name, process in self.processes.items()}
        assert set(codes.values()) == {0}, f"{codes}\n{self.network.logs()}"
        assert len(losses(self.config.out)) == self.config.steps


@contextmanager
def hosts(folder: Path, *names: str, **more: object) -> Iterator[Network]:
    with Network(folder, names or ("first", "second"), **more) as network:  # type: ignore[arg-type]
        yield network


@pytest.mark.fault("H1", injected="two jobs on the same two hosts", lost="0", identical=True)
def test_two_jobs_on_two_hosts_that_know_each_other_by_name(data, tmp_path, undisturbed):
    with hosts(tmp_path) as network:
        jobs = [Job(network, config_of(data, tmp_path / f"run {n}"), 29_400 + n) for n in (0, 1)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.ends_well()
            assert outcome(job.config.out) == undisturbed(2)
            assert starts(job.config.out) == [0]


def delayed(network: Network, seconds: float, lost_share: float, stack: ExitStack) -> None:
    """Let every packet between hosts take `seconds` and a share of them be lost."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("no /dev/net/tun here, so nothing can delay packets")
    processes = [str(host.space.first.pid) for host in network.hosts]
    words = [sys.executable, "-m", "tests.hosts.slow_switch", str(seconds), str(lost_share)]
    switch = stack.enter_context(
        subprocess.Popen(
            [*words, *processes], cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    )
    assert switch.stdin is not None
    stack.callback(switch.stdin.close)
    assert switch.stdout is not None
    assert switch.stdout.readline() == "up\n"
    for host in network.hosts:
        configure(host.space, host.address)


@pytest.mark.fault(
    "H2", injected="50 ms of delay and 1 % of packets lost, three hosts", lost="0", identical=True
)
def test_three_hosts_without_names_on_a_slow_network(data, tmp_path, undisturbed):
    names = ("first", "second", "third")
    with (
        hosts(tmp_path, *names, style="nameless", wired=False) as network,
        ExitStack() as stack,
    ):
        delayed(network, 0.05, 0.01, stack)
        job = Job(network, config_of(data, tmp_path / "run", **OF_THREE), pace=0)
        job.start()
        job.ends_well()
        assert outcome(job.config.out) == undisturbed(3)
        assert starts(job.config.out) == [0]


@pytest.mark.fault("H3", injected="a cable pulled for 20 s", lost="0", identical=True)
def test_a_cable_that_is_out_for_20_seconds_only_costs_that_time(data, tmp_path, undisturbed):
    with hosts(tmp_path) as network:
        job = Job(network, config_of(data, tmp_path / "run"))
        job.start()
        job.reaches(20)
        network.hosts[1].cut()
        time.sleep(20)
        before = job.step
        network.hosts[1].plug()
        job.ends_well()
        assert before < 30
        assert outcome(job.config.out) == undisturbed(2)
        assert starts(job.config.out) == [0]
        assert job.repeated == 0


@pytest.mark.fault(
    "H3", injected="a cable pulled for longer than hang_seconds", lost="0", identical=True
)
def test_a_cable_that_is_out_for_longer_ends_the_ranks_and_loses_no_step(
    data, tmp_path, undisturbed
):
    with hosts(tmp_path) as network:
        job = Job(network, config_of(data, tmp_path / "run"), more=("--hang-seconds", "4"))
        job.start()
        job.reaches(20)
        network.hosts[1].cut()
        job.wait_until(lambda: job.state == "failed")
        done = job.step
        network.hosts[1].plug()
        job.ends_well()
        assert outcome(job.config.out) == undisturbed(2)
        assert starts(job.config.out)[1:] >= [done]
        assert job.repeated == 0


@pytest.mark.fault("H4", injected="one of two hosts disappears", lost="0", identical=True)
def test_a_host_that_disappears_and_comes_back_costs_no_step(data, tmp_path, undisturbed):
    with hosts(tmp_path) as network:
        config = config_of(data, tmp_path / "run", save=SaveConfig(SAVE_EVERY, 0))
        job = Job(network, config, more=("--hang-seconds", "4"))
        job.start()
        job.reaches(25)
        second = network.hosts[1]
        second.disappear()
        job.wait_until(lambda: job.state == "failed")
        second.come_back()
        job.start(second)
        job.ends_well()
        assert outcome(job.config.out) == undisturbed(2)
        assert job.repeated == 0


@pytest.mark.fault(
    "H4", injected="the host of rank 0 and of the rendezvous disappears", lost="0", identical=True
)
def test_the_first_host_disappears_and_the_other_saves(data, tmp_path, undisturbed):
    with hosts(tmp_path) as network:
        config = config_of(data, tmp_path / "run", save=SaveConfig(SAVE_EVERY, 0))
        job = Job(network, config, more=("--hang-seconds", "4"), rendezvous="read_timeout=20")
        job.start()
        job.reaches(25)
        first, second = network.hosts
        first.disappear()
        job.wait_until(lambda: job.processes[second.name].poll() is not None)
        assert job.processes[second.name].returncode == PEER_LOST_CODE
        assert "the machines lost their connection" in second.log.read_text()
        first.come_back()
        job.rendezvous = ""  # on a busy machine the first host may take longer than that to start
        job.start()
        job.ends_well()
        assert outcome(job.config.out) == undisturbed(2)
        assert job.repeated == 0
