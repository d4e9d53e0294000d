"""Variables by which launchers tell a process its rank: believed together, or not at all.

torchrun sets all of them. A container, a batch system or a person may have set some, and a process
that believed those would train a part of the data alone, or train and write nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SHOWN = 40  # characters of a wrong value
_LARGEST_PORT = 65535
_CURE = (
    "start with launch/node.sh or torchrun, which set them all, or unset RANK, WORLD_SIZE, "
    "LOCAL_RANK and LOCAL_WORLD_SIZE for a run of one process"
)


@dataclass(frozen=True)
class JobNumbers:
    """Rank and number of the processes of this job, and of those on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


@dataclass(frozen=True)
class _Starter:
    """A command that starts several processes without telling them torchrun's variables."""

    name: str
    tasks: str
    """The variable with the number of processes; only this command sets it."""
    index: str
    """The variable with the number of this one."""


_STARTERS = (
    _Starter("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    _Starter("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    _Starter("mpirun", "PMI_SIZE", "PMI_RANK"),
)
# What sbatch sets in its script, and srun in its tasks.
_BATCH_SCRIPT = _Starter("SLURM", "SLURM_NTASKS", "SLURM_PROCID")


def job_numbers(variables: Mapping[str, str]) -> JobNumbers:
    """The numbers of this process, from the environment; those of a job of one without torchrun.

    Raises: ValueError if the variables contradict each other, or only some of them are set.
    """
    rank, world_size = _pair(variables, "RANK", "WORLD_SIZE")
    local_rank, local_world_size = _pair(variables, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" in variables and "WORLD_SIZE" not in variables:
        raise ValueError(f"RANK={rank} is set but WORLD_SIZE is not; {_CURE}")
    # Processes of one machine are some of all, and are numbered in the same order.
    if local_rank > rank or local_world_size - local_rank > world_size - rank:
        raise ValueError(
            f"LOCAL_RANK={local_rank} of LOCAL_WORLD_SIZE={local_world_size} cannot be "
            f"RANK={rank} of WORLD_SIZE={world_size}; {_CURE}"
        )
    if world_size > 1:
        _check_address(variables, world_size)
    return JobNumbers(rank, world_size, local_rank, local_world_size)


def check_not_alone(
    variables: Mapping[str, str], whole_job: bool = False, together: int = 1
) -> None:
    """Refuse to be one of more processes than the `together` that know each other.

    `whole_job`: the tasks of a batch job are meant for this program, so one process in a batch
    script is too few. Raises: ValueError that names the variable.
    """
    if "RANK" in variables or "WORLD_SIZE" in variables:
        return
    starters = _STARTERS
    in_step = "SLURM_STEP_NUM_TASKS" in variables
    # A batch script is task 0. Another number is that of a task of srun.
    if not in_step and (whole_job or variables.get("SLURM_PROCID") != "0"):
        starters = (*_STARTERS, _BATCH_SCRIPT)
    for starter in starters:
        if starter.tasks in variables and starter.index in variables:
            tasks = _whole_number(variables, starter.tasks, 1)
            if tasks > together:
                same = variables.get("SLURM_NTASKS") == variables[starter.tasks]
                raise ValueError(
                    f"{'SLURM_NTASKS' if same else starter.tasks}={tasks}: {starter.name} has "
                    f"{tasks} tasks, but this one "
                    + ("knows no other" if together == 1 else f"is one of {together}")
                    + " and would work without them; start launch/node.sh once a node, as "
                    "launch/slurm/train.sbatch does (srun --ntasks-per-node=1), or unset "
                    f"{starter.index} if it is meant to work alone"
                )


def _pair(variables: Mapping[str, str], index: str, count: str) -> tuple[int, int]:
    """The number of a process, and how many there are."""
    number, many = _whole_number(variables, index, 0), _whole_number(variables, count, 1)
    if many < 1:
        raise ValueError(f"{count}=0 is no number of processes; {_CURE}")
    if many > 1 and index not in variables:
        raise ValueError(f"{count}={many} is set but {index} is not; {_CURE}")
    if number >= many:
        known = "" if count in variables else ", which is not set and so 1"
        raise ValueError(f"{index}={number} is not below {count}{known or f'={many}'}; {_CURE}")
    return number, many


def _check_address(variables: Mapping[str, str], world_size: int) -> None:
    """Raises: ValueError if the ranks cannot find each other."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not variables.get(name, "").strip():
            raise ValueError(
                f"WORLD_SIZE={world_size} is above 1 but {name} is "
                f"{'empty' if name in variables else 'not set'}; {_CURE}"
            )
    if not 0 < _whole_number(variables, "MASTER_PORT", 0) <= _LARGEST_PORT:
        raise ValueError(f"{_named(variables, 'MASTER_PORT')} is no port; {_CURE}")


def _whole_number(variables: Mapping[str, str], name: str, default: int) -> int:
    """Raises: ValueError if the variable is set to something other than a whole number."""
    text = variables.get(name)
    if text is None:
        return default
    if not text.strip():
        raise ValueError(f"{name} is set but empty; {_CURE}")
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise ValueError(f"{_named(variables, name)} is no whole number; {_CURE}")
    return int(text)


def _named(variables: Mapping[str, str], name: str) -> str:
    text = variables[name]
    shown = text if text.isprintable() else repr(text)
    return f"{name}={shown[:_SHOWN]}"
