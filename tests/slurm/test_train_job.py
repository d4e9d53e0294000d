"""launch/slurm/train.sbatch under every fault that SLURM knows."""

import pytest

from tests.slurm.cluster import NODES
from tests.slurm.conftest import STEPS, outcome
from tests.slurm.keeper import kill_marked

pytestmark = pytest.mark.long


def assert_whole(training, undisturbed):
    """The job ended well, and the run is bit for bit the undisturbed one."""
    assert training.job.ends() == "COMPLETED", f"{training.job.facts}\n{training.job.text}"
    assert training.status["state"] == "finished"
    assert training.status["step"] == STEPS
    assert outcome(training.out) == undisturbed


def assert_resumed_once(training, done_again):
    """It went on from a step after the 20th, and did at most so many steps twice."""
    assert training.job.restarts == 1
    assert len(training.resumed_at) == 1, training.job.text
    assert training.resumed_at[0] >= 20
    assert training.done_again <= done_again


@pytest.mark.fault("P4", injected="scontrol requeue, two nodes", lost="0", identical=True)
def test_a_requeued_job_goes_on_at_the_step_where_it_was(train, undisturbed):
    training = train()
    training.reaches(20)
    training.job.cluster.command("scontrol", "requeue", training.job.id)
    assert_whole(training, undisturbed)
    assert_resumed_once(training, done_again=0)


@pytest.mark.fault(
    "P5", injected="scancel --signal=TERM or USR1, two nodes", lost="0", identical=True
)
@pytest.mark.parametrize("signal", ["TERM", "USR1"])
def test_a_signal_to_the_steps_saves_and_requeues(train, undisturbed, signal):
    training = train()
    training.reaches(20)
    training.job.cluster.command("scancel", f"--signal={signal}", training.job.id)
    assert_whole(training, undisturbed)
    assert_resumed_once(training, done_again=0)


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
    assert_whole(training, undisturbed)
    assert_resumed_once(training, done_again=10)


def test_a_killed_rank_puts_the_job_back_into_the_queue(train, undisturbed):
    training = train(save=10)
    training.reaches(25)
    kill_marked(f"SLURM_JOB_ID={training.job.id}", "RANK=1")
    assert_whole(training, undisturbed)
    assert_resumed_once(training, done_again=10)


@pytest.mark.fault("P1", injected="SIGKILL of a rank on the second node", lost="0", identical=True)
def test_a_killed_rank_is_started_again_inside_the_job_and_costs_no_step(train, undisturbed):
    training = train(save=10, MAX_RESTARTS="3")
    training.reaches(25)
    kill_marked(f"SLURM_JOB_ID={training.job.id}", "RANK=1")
    assert_whole(training, undisturbed)
    assert training.job.restarts == 0
    assert len(training.resumed_at) == 1, training.job.text
    assert training.done_again == 0


@pytest.mark.fault("P5", injected="the time limit of a job, two nodes", lost="0", identical=True)
def test_the_time_limit_saves_requeues_and_finishes(train, undisturbed):
    training = train("--time=2", "--signal=B:USR1@60", pace=0.8)
    assert_whole(training, undisturbed)
    assert training.job.restarts >= 1
    assert training.job.text.count("time is nearly up") >= training.job.restarts
    assert len(training.resumed_at) == training.job.restarts
    assert training.done_again == 0
