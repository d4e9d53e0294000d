"""Checks of the machine before training: versions, devices, clocks, arithmetic, network.

All ranks must call each check together. Each returns the same result on every rank.
"""

import platform
import subprocess
import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch.cuda import nccl

from parallel.collectives import all_gather_object, sum_over_ranks
from parallel.ranks import Ranks
from train.guards.replicas import checksum

_Verdict = Literal["ok", "warn", "fail"]
# Older versions can run code that is hidden in a checkpoint file: CVE-2025-32434, CVE-2026-24747.
_MIN_TORCH = (2, 10)
_MAX_CLOCK_SECONDS = 2.0  # difference between machines
_FOREIGN_BYTES = 2 << 30  # GPU memory used by others; CUDA and NCCL themselves take less
_HOT_CELSIUS = 55  # for an idle GPU
_NVIDIA_SMI_SECONDS = 20.0
_PRODUCT_SIZE = 512  # rows and columns of the matrices in `check_arithmetic`
_REDUCED_BYTES = {"cuda": 256 << 20, "cpu": 8 << 20}
_ROUNDS = 5  # of the timed all-reduce; the fastest counts


@dataclass(frozen=True)
class MachineCheck:
    """The result of one check: a row of the doctor's table."""

    name: str
    verdict: _Verdict
    text: str


def check_versions() -> list[MachineCheck]:
    """Versions of Python, torch, CUDA and NCCL."""
    parts = torch.__version__.split("+")[0].split(".")
    old = tuple(int(part) for part in parts[:2] if part.isdigit()) < _MIN_TORCH
    libraries = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    if torch.cuda.is_available() and dist.is_nccl_available():
        libraries += f", NCCL {'.'.join(map(str, nccl.version()))}"
    text = f"Python {platform.python_version()}, torch {torch.__version__}{libraries}"
    cure = f"; torch must be {'.'.join(map(str, _MIN_TORCH))} or newer" if old else ""
    return [MachineCheck("versions", "fail" if old else "ok", text + cure)]


def check_devices(ranks: Ranks) -> list[MachineCheck]:
    """The devices of all ranks. Warns of GPUs that are in use by others or hot while idle."""
    devices = all_gather_object(_own_device(ranks.device))
    names = sorted({name for name, *_ in devices})
    text = f"{ranks.world_size} ranks on {', '.join(names)}"
    if ranks.device.type == "cuda":
        text += f"; {temperature_verdict([celsius for _, celsius, _ in devices])}"
    found = [MachineCheck("devices", "ok" if len(names) == 1 else "warn", text)]
    for rank, (name, _, trouble) in enumerate(devices):
        if trouble:
            found.append(MachineCheck("devices", "warn", f"rank {rank}, {name}: {trouble}"))
    return found


def temperature_verdict(celsius: list[int | None]) -> str:
    """The highest temperature, and the ranks whose GPU's temperature is unknown."""
    known = [degrees for degrees in celsius if degrees is not None]
    unknown = [str(rank) for rank, degrees in enumerate(celsius) if degrees is None]
    parts = [f"at most {max(known)} degrees Celsius"] if known else []
    if unknown:
        names = ", ".join(unknown)
        parts.append(f"the temperature of rank {names} cannot be read (by nvidia-smi)")
    return ", ".join(parts)


def _own_device(device: torch.device) -> tuple[str, int | None, str]:
    """Name and temperature of this rank's device, and a text about what is wrong with it."""
    if device.type != "cuda":
        return f"CPU ({torch.get_num_threads()} threads)", None, ""
    free, total = torch.cuda.mem_get_info(device)
    foreign = total - free - torch.cuda.memory_reserved(device)
    trouble = []
    if foreign > _FOREIGN_BYTES:
        trouble.append(f"{foreign / 2**30:.1f} GiB are in use by other processes")
    celsius = _celsius(device)
    if celsius is not None and celsius >= _HOT_CELSIUS:
        trouble.append(f"{celsius} degrees Celsius before any work")
    return torch.cuda.get_device_name(device), celsius, ", ".join(trouble)


def _celsius(device: torch.device) -> int | None:
    """Temperature of a GPU; None if it cannot be read, as for a MIG slice."""
    # torch.cuda.temperature() would need the package nvidia-ml-py, which torch does not install.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    query = [f"--id=GPU-{uuid}", "--query-gpu=temperature.gpu", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            ["nvidia-smi", *query], capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def check_clocks(ranks: Ranks) -> MachineCheck:
    """Whether the clocks of all machines agree."""
    # Clocks decide when to save and, with `--stop-at`, when to stop.
    sum_over_ranks(torch.zeros(1, device=ranks.device)).item()  # brings all ranks to this line
    times = all_gather_object(time.time())
    apart = max(times) - min(times)
    verdict = "ok" if apart < _MAX_CLOCK_SECONDS else "warn"
    return MachineCheck("clocks", verdict, f"{apart:.2f} s apart over {len(times)} ranks")


def check_arithmetic(ranks: Ranks) -> MachineCheck:
    """Whether matrix products are right on every rank, and the same on all ranks bit for bit."""
    generator = torch.Generator().manual_seed(1)
    # Sums of products of integers below 2^24 are exact in float32 (and TF32) in any order, so they
    # can be compared with integer arithmetic.
    integers = torch.randint(-8, 8, (2, _PRODUCT_SIZE, _PRODUCT_SIZE), generator=generator)
    a, b = integers.float().to(ranks.device)
    exact = torch.equal((a @ b).cpu(), (integers[0] @ integers[1]).float())
    a, b = torch.rand((2, _PRODUCT_SIZE, _PRODUCT_SIZE), generator=generator).to(ranks.device)
    results = all_gather_object((exact, int(checksum(a @ b))))
    return agreement_verdict([right for right, _ in results], [bits for _, bits in results])


def agreement_verdict(exact: list[bool], bits: list[int]) -> MachineCheck:
    """Compare the ranks: whether each product was exact, and the checksum of the other product."""
    name = "arithmetic"
    wrong = [str(rank) for rank, right in enumerate(exact) if not right]
    if wrong:
        text = f"rank {', '.join(wrong)} multiplies integers wrongly: do not use that device"
        return MachineCheck(name, "fail", text)
    if len(set(bits)) > 1:
        other = [str(rank) for rank, found in enumerate(bits) if found != bits[0]]
        text = (
            f"a product has other bits on rank {', '.join(other)} than on rank 0: "
            "are these other devices?"
        )
        return MachineCheck(name, "warn", text)
    return MachineCheck(name, "ok", "a small product is exact, and the same bits on all ranks")


def check_reduction(ranks: Ranks) -> MachineCheck:
    """Speed of an all-reduce over the ranks, and whether its sum is right."""
    if ranks.world_size == 1:
        return MachineCheck("all-reduce", "ok", "one rank: nothing to reduce")
    size = _REDUCED_BYTES[ranks.device.type]
    numbers = torch.ones(size // 4, device=ranks.device)
    _timed_sum(numbers)
    seconds = min(_timed_sum(numbers.fill_(1.0)) for _ in range(_ROUNDS))
    total = float(numbers[-1])
    if total != ranks.world_size:
        return MachineCheck("all-reduce", "fail", f"the sum of {ranks.world_size} ones is {total}")
    # "Bus bandwidth" as NCCL's tests report it, which does not depend on the number of ranks:
    # https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
    share = 2 * (ranks.world_size - 1) / ranks.world_size
    text = (
        f"{share * size / seconds / 1e9:.2f} GB/s on the bus ({size >> 20} MB in "
        f"{1000 * seconds:.1f} ms, {dist.get_backend()}{_transport(ranks)})"
    )
    return MachineCheck("all-reduce", "ok", text)


def _timed_sum(numbers: torch.Tensor) -> float:
    began = time.perf_counter()
    sum_over_ranks(numbers)
    float(numbers[0])  # waits for the device
    return time.perf_counter() - began


def _transport(ranks: Ranks) -> str:
    """Whether the GPUs of this machine can access each other's memory, as a text."""
    gpus = range(ranks.local_world_size)
    if ranks.device.type != "cuda" or len(gpus) < 2:
        return ""
    pairs = [(a, b) for a in gpus for b in gpus if a != b]
    cut = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
    if not cut:
        return ", direct access between all local GPUs"
    return f", NO direct access between {len(cut)} of {len(pairs)} pairs of local GPUs"
