"""The batch scripts on a cluster: training under faults of SLURM, evaluation, preparation.

All tests are in one file, because they share one cluster and a file runs in one process.
"""

import json

import pytest

from eval.training_config import EvalConfig
from tests.data_prep.stories import STORIES, folder_bytes, write_lines
from tests.launching import python, torchrun
from tests.runs import flags, lines, starts, tiny_config
from tests.slurm.cluster import NODES, Job
from tests.slurm.conftest import STEPS, Training, config_of, outcome
from tests.slurm.keeper import kill_marked

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


def test_two_nodes_train_like_one_machine(two_by_two, tmp_path):
    config, _, _, _ = two_by_two
    assert json.loads((config.out / "config.json").read_text())["run"]["world_size"] == 4
    alone = tmp_path / "alone"
    words = flags(tiny_config(config.data[0], alone, eval=config.eval))
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
    logs = [path for path in folder.rglob("stdout.log") if "4 processes" in path.read_text()]
    assert len(logs) == 1


def test_evaluation_starts_after_training_and_gives_the_same_numbers(two_by_two):
    config, train, evaluation, folder = two_by_two
    assert evaluation.facts["StartTime"] >= train.facts["EndTime"]
    found = json.loads((folder / "found.json").read_text())
    assert found["val/loss"] == lines(config.out)[-1]["val/loss"]


def test_with_a_wrong_path_the_job_fails_and_its_evaluation_does_not_start(cluster, data, tmp_path):
    config = tiny_config(tmp_path / "nowhere", tmp_path / "run")
    options = ["--nodes=2", "--gpus-per-node=0"]
    train = cluster.submit("train.sbatch", *flags(config)[1:], sbatch=options)
    options = [f"--dependency=afterok:{train.id}", "--gpus-per-node=0"]
    evaluation = cluster.submit("eval.sbatch", "--checkpoint", tmp_path, sbatch=options)
    assert train.ends() == "FAILED"
    assert train.facts["ExitCode"] != "0:0"
    assert f"{tmp_path}/nowhere" in train.text
    evaluation.wait_for(lambda: evaluation.facts["Reason"] == "DependencyNeverSatisfied")


def test_an_evaluation_of_a_missing_checkpoint_fails(cluster, tmp_path):
    words = ["--checkpoint", tmp_path / "nothing", "--device", "cpu"]
    evaluation = cluster.submit("eval.sbatch", *words, sbatch=["--gpus-per-node=0"])
    assert evaluation.ends() == "FAILED", evaluation.text


def test_an_array_of_jobs_prepares_the_same_bytes_as_one_machine(cluster, tmp_path):
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


def test_an_array_of_jobs_makes_a_sweep_also_if_one_of_them_is_requeued(cluster, data, tmp_path):
    config = config_of(data, tmp_path / "a sweep")
    words = flags(config, "--eval.every", "50", "--steps", "200")[1:]
    place = words.index("--optimizer.lr")
    words[place : place + 2] = ["--set", "optimizer.lr=0.01,100", "--seeds", "1"]
    options = ["--array=1-2", "--gpus-per-node=0", "--cpus-per-task=1"]
    array = cluster.submit("sweep.sbatch", *words, sbatch=options)
    first, second = (Job(cluster, f"{array.id}_{n}", array.output) for n in (1, 2))
    run = Training(first, config.out / "optimizer.lr=0.01,seed=1")
    run.reaches(10)
    cluster.command("scontrol", "requeue", first.id)
    assert (first.ends(), second.ends()) == ("COMPLETED", "COMPLETED"), array.text
    assert first.restarts == 1
    assert len(starts(run.out)) == 2
    found = json.loads((config.out / "sweep.json").read_text())
    assert found["state"] == "finished", array.text
    assert [r["state"] for r in found["runs"]] == ["finished", "diverged"]
    assert "best: optimizer.lr=0.01" in array.text


def test_a_sweep_outside_an_array_is_refused(cluster):
    words = ["demo", "--set", "optimizer.lr=0.01"]
    job = cluster.submit("sweep.sbatch", *words, sbatch=["--array=0", "--gpus-per-node=0"])
    assert job.ends() == "FAILED"
    assert "shard=0/1 is no share; give I/N with I from 1 to N" in job.text


def assert_undisturbed(training, undisturbed):
    """The job completed, and the run equals the undisturbed one bit for bit."""
    assert training.job.ends() == "COMPLETED", f"{training.job.facts}\n{training.job.text}"
    assert training.status["state"] == "finished"
    assert training.status["step"] == STEPS
    assert outcome(training.out) == undisturbed


def assert_resumed_once(training, repeated):
    """The run was resumed once, at step 20 or later, and repeated at most `repeated` steps."""
    assert training.job.restarts == 1
    assert len(training.resumed_at) == 1, training.job.text
    assert training.resumed_at[0] >= 20
    assert training.repeated <= repeated


@pytest.mark.fault("P4", injected="scontrol requeue, two nodes", lost="0", identical=True)
def test_a_requeued_job_continues_at_the_same_step(train, undisturbed):
    training = train()
    training.reaches(20)
    training.job.cluster.command("scontrol", "requeue", training.job.id)
    assert_undisturbed(training, undisturbed)
    assert_resumed_once(training, repeated=0)


@pytest.mark.fault(
    "P5", injected="scancel --signal=TERM or USR1, two nodes", lost="0", identical=True
)
@pytest.mark.parametrize("signal", ["TERM", "USR1"])
def test_a_signal_to_the_steps_saves_and_requeues(train, undisturbed, signal):
    training = train()
    training.reaches(20)
    training.job.cluster.command("scancel", f"--signal={signal}", training.job.id)
    assert_undisturbed(training, undisturbed)
    assert_resumed_once(training, repeated=0)


def test_a_cancelled_job_saves_and_stays_cancelled(train):
    training = train()
    training.reaches(20)
    training.job.cluster.command("scancel", training.job.id)
    assert training.job.ends() == "CANCELLED"
    assert training.status["state"] == "preempted", training.job.text
    assert training.status["step"] >= 20
    assert (training.out / f"checkpoints/step_{training.status['step']:06d}").is_dir()
    assert training.job.restarts == 0


@pytest.mark.fault(
    "P2", injected="slurmd and all of its node killed, two nodes", lost="≤ 10", identical=True
)
@pytest.mark.parametrize("node", NODES)
def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(train, undisturbed, node):
    training = train(save=10)
    training.reaches(25)
    training.job.cluster.lose_node(node)
    training.job.wait_for(lambda: training.job.restarts == 1)
    training.job.cluster.start_node(node)
    assert_undisturbed(training, undisturbed)
    assert_resumed_once(training, repeated=10)


def test_a_killed_rank_requeues_the_job(train, undisturbed):
    training = train(save=10)
    training.reaches(25)
    kill_marked(f"SLURM_JOB_ID={training.job.id}", "RANK=1")
    assert_undisturbed(training, undisturbed)
    assert_resumed_once(training, repeated=10)


@pytest.mark.fault("P1", injected="SIGKILL of a rank on the second node", lost="0", identical=True)
def test_a_killed_rank_is_restarted_inside_the_job_and_costs_no_step(train, undisturbed):
    training = train(save=10, MAX_RESTARTS="3")
    training.reaches(25)
    kill_marked(f"SLURM_JOB_ID={training.job.id}", "RANK=1")
    assert_undisturbed(training, undisturbed)
    assert training.job.restarts == 0
    assert len(training.resumed_at) == 1, training.job.text
    assert training.repeated == 0


@pytest.mark.fault("P5", injected="the time limit of a job, two nodes", lost="0", identical=True)
def test_the_time_limit_saves_requeues_and_finishes(train, undisturbed):
    training = train("--time=2", "--signal=B:USR1@60", pace=0.8)
    assert_undisturbed(training, undisturbed)
    assert training.job.restarts >= 1
    assert training.job.text.count("the time limit is near") >= training.job.restarts
    assert len(training.resumed_at) == training.job.restarts
    assert training.repeated == 0
