"""What a machine shows before it trains: versions, devices, clocks, equal arithmetic, the network.

Every check is made by all ranks together and tells each of them the same.
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

Verdict = Literal["ok", "warn", "fail"]
TORCH_FLOOR = (2, 10)  # older ones run code from files: CVE-2025-32434, CVE-2026-24747
CLOCK_SECONDS = 2.0
FOREIGN_BYTES = 2 << 30  # beyond what CUDA and NCCL take for themselves
HOT_CELSIUS = 55  # of a GPU that does nothing
DRIVER_SECONDS = 20.0  # that the driver may take to tell a temperature
PRODUCT = 512
REDUCED_BYTES = {"cuda": 256 << 20, "cpu": 8 << 20}
ROUNDS = 5


@dataclass(frozen=True)
class MachineCheck:
    """One row of the table."""

    name: str
    verdict: Verdict
    text: str


def check_versions() -> list[MachineCheck]:
    """Python, torch and what torch brings."""
    parts = torch.__version__.split("+")[0].split(".")
    old = tuple(int(part) for part in parts[:2] if part.isdigit()) < TORCH_FLOOR
    brings = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    if torch.cuda.is_available() and dist.is_nccl_available():
        brings += f", NCCL {'.'.join(map(str, nccl.version()))}"
    text = f"Python {platform.python_version()}, torch {torch.__version__}{brings}"
    cure = f"; torch must be {'.'.join(map(str, TORCH_FLOOR))} or newer" if old else ""
    return [MachineCheck("versions", "fail" if old else "ok", text + cure)]


def check_devices(ranks: Ranks) -> list[MachineCheck]:
    """Each kind of device once; GPUs that somebody else uses, or that are hot doing nothing."""
    told = all_gather_object(_own_device(ranks.device))
    names = sorted({name for name, *_ in told})
    text = f"{ranks.world_size} ranks on {', '.join(names)}"
    if ranks.device.type == "cuda":
        text += f"; {temperature_verdict([celsius for _, celsius, _ in told])}"
    found = [MachineCheck("devices", "ok" if len(names) == 1 else "warn", text)]
    for rank, (name, _, trouble) in enumerate(told):
        if trouble:
            found.append(MachineCheck("devices", "warn", f"rank {rank}, {name}: {trouble}"))
    return found


def temperature_verdict(celsius: list[int | None]) -> str:
    """How warm the GPUs are, and which of them do not say."""
    known = [degrees for degrees in celsius if degrees is not None]
    mute = [str(rank) for rank, degrees in enumerate(celsius) if degrees is None]
    parts = [f"at most {max(known)} degrees Celsius"] if known else []
    if mute:
        parts.append(f"the temperature of rank {', '.join(mute)} cannot be read (by nvidia-smi)")
    return ", ".join(parts)


def _own_device(device: torch.device) -> tuple[str, int | None, str]:
    """Its name, its temperature, and what is odd about it."""
    if device.type != "cuda":
        return f"CPU ({torch.get_num_threads()} threads)", None, ""
    free, total = torch.cuda.mem_get_info(device)
    foreign = total - free - torch.cuda.memory_reserved(device)
    trouble = []
    if foreign > FOREIGN_BYTES:
        trouble.append(f"{foreign / 2**30:.1f} GiB are in use by others")
    celsius = _celsius(device)
    if celsius is not None and celsius >= HOT_CELSIUS:
        trouble.append(f"{celsius} degrees Celsius before any work")
    return torch.cuda.get_device_name(device), celsius, ", ".join(trouble)


def _celsius(device: torch.device) -> int | None:
    """A GPU's temperature; None where nobody tells it, as for a slice of one.

    From the driver's own program: torch's function needs a package that torch does not bring.
    """
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    query = [f"--id=GPU-{uuid}", "--query-gpu=temperature.gpu", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(
            ["nvidia-smi", *query], capture_output=True, text=True, timeout=DRIVER_SECONDS
        )
        return int(told.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def check_clocks(ranks: Ranks) -> MachineCheck:
    """Whether all machines have the same time: rank 0's clock decides on saves and `--stop-at`."""
    sum_over_ranks(torch.zeros(1, device=ranks.device)).item()  # all of them are here
    times = all_gather_object(time.time())
    apart = max(times) - min(times)
    verdict = "ok" if apart < CLOCK_SECONDS else "warn"
    return MachineCheck("clocks", verdict, f"{apart:.2f} s apart over {len(times)} ranks")


def check_agreement(ranks: Ranks) -> MachineCheck:
    """A product of whole numbers is exact on every rank; one of fractions is the same on all."""
    generator = torch.Generator().manual_seed(1)
    whole = torch.randint(-8, 8, (2, PRODUCT, PRODUCT), generator=generator)
    a, b = whole.float().to(ranks.device)
    exact = torch.equal((a @ b).cpu(), (whole[0] @ whole[1]).float())
    a, b = torch.rand((2, PRODUCT, PRODUCT), generator=generator).to(ranks.device)
    told = all_gather_object((exact, int(checksum(a @ b))))
    return agreement_verdict([right for right, _ in told], [bits for _, bits in told])


def agreement_verdict(exact: list[bool], bits: list[int]) -> MachineCheck:
    """The verdict on what every rank computed."""
    name = "arithmetic"
    wrong = [str(rank) for rank, right in enumerate(exact) if not right]
    if wrong:
        text = f"rank {', '.join(wrong)} multiplies whole numbers wrongly: do not use that device"
        return MachineCheck(name, "fail", text)
    if len(set(bits)) > 1:
        odd = [str(rank) for rank, found in enumerate(bits) if found != bits[0]]
        text = f"a product has other bits on rank {', '.join(odd)} than on rank 0: unlike devices?"
        return MachineCheck(name, "warn", text)
    return MachineCheck(
        name, "ok", "a small product is exact, and the same on all ranks to the bit"
    )


def check_reduction(ranks: Ranks) -> MachineCheck:
    """How fast the ranks add up a gradient's worth of numbers, and over what."""
    if ranks.world_size == 1:
        return MachineCheck("all-reduce", "ok", "one rank: nothing to reduce")
    size = REDUCED_BYTES[ranks.device.type]
    numbers = torch.ones(size // 4, device=ranks.device)
    _timed_sum(numbers)
    seconds = min(_timed_sum(numbers.fill_(1.0)) for _ in range(ROUNDS))
    total = float(numbers[-1])
    if total != ranks.world_size:
        return MachineCheck("all-reduce", "fail", f"the sum of {ranks.world_size} ones is {total}")
    share = 2 * (ranks.world_size - 1) / ranks.world_size  # what a ring sends for each byte
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
    """Whether the GPUs of this machine reach each other's memory."""
    gpus = range(ranks.local_world_size)
    if ranks.device.type != "cuda" or len(gpus) < 2:
        return ""
    pairs = [(a, b) for a in gpus for b in gpus if a != b]
    cut = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
    if not cut:
        return ", direct access between all local GPUs"
    return f", NO direct access between {len(cut)} of {len(pairs)} pairs of local GPUs"
