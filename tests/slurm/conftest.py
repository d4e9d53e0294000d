"""Fixtures of the SLURM tests: one cluster for all of them, and an undisturbed run."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.digest import file_sha256
from storage.retention import SaveConfig
from tests.data_sets import tiny_data_set
from tests.launching import torchrun
from tests.runs import flags, losses, tiny_config
from tests.slurm.cluster import Cluster, Job, missing
from train.config import Config

STEPS = 80


@dataclass(frozen=True)
class Outcome:
    """The numbers of a run, which no fault may change."""

    losses: list[float]
    weights: str


def outcome(folder: Path) -> Outcome:
    """Losses and the digest of the weights of a finished run."""
    weights = folder / "checkpoints/latest/model.safetensors"
    return Outcome(losses(folder), file_sha256(weights))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes, for all tests."""
    if why := missing():
        pytest.skip(why)
    cluster = Cluster()
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set that all runs read."""
    folder = tmp_path_factory.mktemp("slurm data") / "data set"
    tiny_data_set(folder, documents=400, vocab=500)
    return folder


def config_of(data: Path, out: Path, **changes) -> Config:
    """The run of these tests; the folder's name has a space."""
    return tiny_config(data, out, steps=STEPS, **changes)


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same run on one machine without SLURM, two processes from start to end."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done = torchrun(2, *flags(config_of(data, out)))
    assert done.returncode == 0, done.stderr
    assert len(losses(out)) == STEPS
    return outcome(out)


@dataclass(frozen=True)
class Training:
    """A training job with one process on each of two nodes, and its run folder."""

    job: Job
    out: Path

    @property
    def step(self) -> int:
        """Number of metric lines so far."""
        path = self.out / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    @property
    def status(self) -> dict:
        """The content of status.json."""
        path = self.out / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def resumed_at(self) -> list[int]:
        """The steps at which the run was resumed, from the job's output."""
        return [
            int(line.split(": step ")[1].split()[0])
            for line in self.job.text.splitlines()
            if "resuming from" in line
        ]

    @property
    def repeated(self) -> int:
        """Number of steps that were repeated."""
        path = self.out / "metrics.discarded.jsonl"
        return path.read_text().count('"train/loss"') if path.exists() else 0

    def reaches(self, step: int, seconds: float = 90) -> None:
        """Wait until the run has `step` metric lines."""
        self.job.wait_for(lambda: self.step >= step or self.job.state == "FAILED", seconds)
        assert self.step >= step, self.job.text


@pytest.fixture
def train(cluster: Cluster, data: Path, tmp_path: Path):
    """Start a training job whose steps take at least `pace` seconds."""

    def submit(*sbatch: str, pace: float = 0.1, save: int = 0, **more: str) -> Training:
        out = tmp_path / "a run"
        words = flags(config_of(data, out, save=SaveConfig(every=save, every_minutes=0)))
        options = ["--nodes=2", "--gpus-per-node=0", *sbatch]
        paced = {"SCRIPT": "tests/slurm/paced.py", "PACE": str(pace), **more}
        job = cluster.submit("train.sbatch", *words[1:], sbatch=options, **paced)
        return Training(job, out)

    return submit
