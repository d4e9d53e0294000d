"""What GPUs can do: dense bf16 peak and memory, from NVIDIA's data sheets."""

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    part_of_name: str
    """How torch's name of the device contains it."""
    peak: float
    """Dense bf16 tensor-core peak in FLOP/s."""
    memory_bytes: int


# More particular names first: "H100 PCIe" before "H100", "GH200" contains "H200".
GPUS = {
    "h200": Gpu("H200", 989e12, 141 * GB),
    "h100-pcie": Gpu("H100 PCIe", 756e12, 80 * GB),
    "h100-nvl": Gpu("H100 NVL", 835e12, 94 * GB),
    "h100": Gpu("H100", 989e12, 80 * GB),
    "h800": Gpu("H800", 989e12, 80 * GB),
    "a100-40gb": Gpu("A100-SXM4-40GB", 312e12, 40 * GB),
    "a100-40gb-pcie": Gpu("A100-PCIE-40GB", 312e12, 40 * GB),
    "a100": Gpu("A100", 312e12, 80 * GB),
    "a800": Gpu("A800", 312e12, 80 * GB),
    "b200": Gpu("B200", 2250e12, 180 * GB),
    "l40s": Gpu("L40S", 362e12, 48 * GB),
    "rtx4090": Gpu("RTX 4090", 165e12, 24 * GB),
}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak of one GPU in FLOP/s, or None if the GPU is not in the table."""
    for gpu in GPUS.values():
        if gpu.part_of_name in device_name:
            return gpu.peak
    return None
