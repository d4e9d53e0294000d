"""The batch scripts at work: two nodes, evaluation behind training, data in an array."""

import json

import pytest

from tests.launching import python, torchrun
from tests.runs import flags, lines, tiny_config
from tests.slurm.conftest import outcome
from tests.test_prepare import STORIES, folder_bytes, write_lines
from train.config import EvalConfig

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def two_by_two(cluster, data, tmp_path_factory):
    """A training job of two GPUs on each of two nodes, and an evaluation that waits for it."""
    folder = tmp_path_factory.mktemp("two by two")
    config = tiny_config(data, folder / "a run", eval=EvalConfig(every=8, val_tokens=64, tasks=()))
    train = cluster.submit(
        "train.sbatch", *flags(config)[1:], sbatch=["--nodes=2", "--gpus-per-node=2"]
    )
    words = ["--checkpoint", config.out / "checkpoints/latest", "--tasks", "val_loss"]
    words += ["--device", "cpu", "--val-tokens", 64, "--json", folder / "found.json"]
    options = [f"--dependency=afterok:{train.id}", "--gpus-per-node=2"]
    evaluation = cluster.submit("eval.sbatch", *words, sbatch=options)
    assert evaluation.facts["Reason"] == "Dependency"
    assert (train.ends(), evaluation.ends()) == ("COMPLETED", "COMPLETED"), (
        train.text + evaluation.text
    )
    return config, train, evaluation, folder


def test_two_nodes_meet_and_train_as_one_machine_would(two_by_two, tmp_path):
    config, _, _, _ = two_by_two
    assert json.loads((config.out / "config.json").read_text())["run"]["world_size"] == 4
    alone = tmp_path / "alone"
    words = flags(tiny_config(config.data, alone, eval=config.eval))
    assert torchrun(4, *words).returncode == 0
    assert outcome(config.out) == outcome(alone)


def test_every_rank_has_its_own_log(two_by_two):
    config, train, _, _ = two_by_two
    folder = config.out.with_name("a run.logs") / f"job_{train.id}"
    found = {path.relative_to(folder) for path in folder.rglob("stdout.log")}
    assert sorted((path.parts[0], path.parts[-2]) for path in found) == [
        ("node_0", "0"),
        ("node_0", "1"),
        ("node_1", "0"),
        ("node_1", "1"),
    ]
    assert "finished at step 8" in train.text
    told = [path for path in folder.rglob("stdout.log") if "world_size 4" in path.read_text()]
    assert len(told) == 1


def test_evaluation_starts_after_training_and_finds_its_numbers(two_by_two):
    config, train, evaluation, folder = two_by_two
    assert evaluation.facts["StartTime"] >= train.facts["EndTime"]
    found = json.loads((folder / "found.json").read_text())
    assert found["val/loss"] == lines(config.out)[-1]["val/loss"]


def test_a_wrong_path_fails_the_job_and_holds_back_its_evaluation(cluster, data, tmp_path):
    config = tiny_config(tmp_path / "nowhere", tmp_path / "run")
    options = ["--nodes=2", "--gpus-per-node=0"]
    train = cluster.submit("train.sbatch", *flags(config)[1:], sbatch=options)
    options = [f"--dependency=afterok:{train.id}", "--gpus-per-node=0"]
    evaluation = cluster.submit("eval.sbatch", "--checkpoint", tmp_path, sbatch=options)
    assert train.ends() == "FAILED"
    assert train.facts["ExitCode"] != "0:0"
    assert f"{tmp_path}/nowhere" in train.text
    evaluation.wait_for(lambda: evaluation.facts["Reason"] == "DependencyNeverSatisfied")


def test_an_evaluation_of_nothing_fails(cluster, tmp_path):
    words = ["--checkpoint", tmp_path / "nothing", "--device", "cpu"]
    evaluation = cluster.submit("eval.sbatch", *words, sbatch=["--gpus-per-node=0"])
    assert evaluation.ends() == "FAILED", evaluation.text


def test_data_of_an_array_and_its_merge_are_the_bytes_of_one_machine(cluster, tmp_path):
    source, alone, shared = tmp_path / "stories.jsonl", tmp_path / "alone", tmp_path / "an array"
    write_lines(source, STORIES)
    words = ["--source", str(source), "--shard-tokens", "300", "--val-tokens", "500"]
    parts = cluster.submit(
        "data_prep.sbatch",
        *(*words, "--out", shared),
        sbatch=["--array=1-3", "--cpus-per-task=2"],
    )
    options = [f"--dependency=afterok:{parts.id}", "--cpus-per-task=2"]
    merge = cluster.submit("data_prep.sbatch", *words, "--out", shared, "--merge", sbatch=options)
    assert merge.ends(180) == "COMPLETED", merge.text
    done = python("data_prep/fineweb.py", *words, "--out", str(alone), "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert folder_bytes(shared) == folder_bytes(alone)
    assert len(list(shared.glob("train_*.npy"))) > 3
