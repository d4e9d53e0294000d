"""What the environment says of a process's rank is believed as a whole, or refused by name."""

import pytest

from parallel import ranks
from parallel.job_variables import JobNumbers, check_not_alone, job_numbers
from tests.launching import python

ADDRESS = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def variables(text, **more):
    return dict(word.split("=") for word in text.split()) | more


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", (0, 1, 0, 1)),
        ("WORLD_SIZE=1", (0, 1, 0, 1)),
        ("RANK=0 WORLD_SIZE=1", (0, 1, 0, 1)),
        ("RANK=1 WORLD_SIZE=2", (1, 2, 0, 1)),
        ("RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", (3, 4, 1, 2)),
        ("RANK=1 WORLD_SIZE=5 LOCAL_RANK=1 LOCAL_WORLD_SIZE=3", (1, 5, 1, 3)),
        ("RANK=2 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", (2, 4, 1, 2)),  # round robin
    ],
)
def test_what_fits_together_is_believed(text, numbers):
    assert job_numbers(variables(text) | ADDRESS) == JobNumbers(*numbers)


@pytest.mark.fault("H5", injected="RANK, WORLD_SIZE … missing, empty, out of range", lost="0")
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("RANK=1", "RANK=1 is not below WORLD_SIZE, which is not set"),
        ("RANK=0", "RANK=0 is set but WORLD_SIZE is not"),
        ("RANK=", "RANK is set but empty"),
        ("WORLD_SIZE=", "WORLD_SIZE is set but empty"),
        ("WORLD_SIZE=0", "WORLD_SIZE=0 is no number of processes"),
        ("WORLD_SIZE=2", "WORLD_SIZE=2 is set but RANK is not"),
        ("RANK=2 WORLD_SIZE=2", "RANK=2 is not below WORLD_SIZE=2"),
        ("RANK=-1 WORLD_SIZE=2", "RANK=-1 is no whole number"),
        ("RANK=0 WORLD_SIZE=2.0", "WORLD_SIZE=2.0 is no whole number"),
        ("RANK=0 WORLD_SIZE=1_0", "WORLD_SIZE=1_0 is no whole number"),
        ("RANK=0 WORLD_SIZE=99999999999999999999", "WORLD_SIZE=9+ is no whole number"),
        ("LOCAL_RANK=1", "LOCAL_RANK=1 is not below LOCAL_WORLD_SIZE, which is not set"),
        ("LOCAL_WORLD_SIZE=0", "LOCAL_WORLD_SIZE=0"),
        ("LOCAL_WORLD_SIZE=2", "LOCAL_WORLD_SIZE=2 is set but LOCAL_RANK is not"),
        ("LOCAL_RANK=0 LOCAL_WORLD_SIZE=2", "LOCAL_WORLD_SIZE=2 cannot be .*WORLD_SIZE=1"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", "LOCAL_RANK=1 .*RANK=0"),
        ("RANK=3 WORLD_SIZE=4 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2", "LOCAL_RANK=0 .*RANK=3"),
        ("RANK=0 WORLD_SIZE=2 MASTER_PORT=0", "MASTER_PORT=0 is no port"),
        ("RANK=0 WORLD_SIZE=2 MASTER_PORT=70000", "MASTER_PORT=70000 is no port"),
        ("RANK=0 WORLD_SIZE=2 MASTER_PORT=http", "MASTER_PORT=http is no whole number"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=", "WORLD_SIZE=2 is above 1 but MASTER_ADDR is empty"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(text, named):
    with pytest.raises(ValueError, match=f"{named}.*; start with launch/node.sh or torchrun"):
        job_numbers(ADDRESS | variables(text))


@pytest.mark.parametrize("name", ADDRESS)
def test_several_ranks_need_an_address(name):
    lacking = {n: v for n, v in ADDRESS.items() if n != name}
    with pytest.raises(ValueError, match=f"{name} is not set"):
        job_numbers(variables("RANK=0 WORLD_SIZE=2") | lacking)


STEP = "SLURM_NTASKS=2 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2"
BATCH = "SLURM_NTASKS=2 SLURM_PROCID=0"


@pytest.mark.fault("H5", injected="srun and mpirun without torchrun", lost="0")
@pytest.mark.parametrize("whole_job", [True, False])
@pytest.mark.parametrize(
    ("text", "named"),
    [
        (STEP, "SLURM_NTASKS=2: srun has 2 tasks"),
        ("SLURM_NTASKS=2 SLURM_PROCID=1", "SLURM_NTASKS=2: SLURM has 2 tasks"),
        ("SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2", "SLURM_STEP_NUM_TASKS=2: srun"),
        ("OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_SIZE=8: mpirun"),
        ("PMI_SIZE=8 PMI_RANK=3", "PMI_SIZE=8: mpirun has 8 tasks"),
    ],
)
def test_a_task_of_several_that_knows_no_others_is_refused(text, named, whole_job):
    with pytest.raises(ValueError, match=f"{named}.*launch/node.sh once a node"):
        check_not_alone(variables(text), whole_job)


def test_a_batch_script_of_several_tasks_may_evaluate_but_not_train_alone():
    check_not_alone(variables(BATCH), whole_job=False)
    with pytest.raises(ValueError, match="SLURM_NTASKS=2: SLURM has 2 tasks"):
        check_not_alone(variables(BATCH), whole_job=True)


@pytest.mark.parametrize(
    "text",
    [
        "SLURM_NTASKS=2",  # the shell of salloc
        "SLURM_NTASKS=1 SLURM_PROCID=0",
        "SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1",  # srun --ntasks=1, salloc's step
        f"{STEP} RANK=1 WORLD_SIZE=2",
        "OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0",
    ],
)
def test_one_task_and_one_under_torchrun_may_start(text):
    check_not_alone(variables(text), whole_job=True)


@pytest.mark.parametrize("script", ["train/main.py", "eval/main.py", "eval/compare.py"])
def test_a_script_prints_one_sentence_whatever_the_rank(script):
    done = python(script, "--help", RANK="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: RANK=1 is not below WORLD_SIZE")
    assert done.stderr.count("\n") == 1


def test_a_wrong_environment_reports_as_rank_0(monkeypatch):
    monkeypatch.setenv("RANK", "x")
    assert ranks.rank_from_environment() == 0
