"""Whether a process uses a GPU, by `--device` and the GPUs of its machine."""

import torch


def wants_cuda(device: str, local_world_size: int) -> bool:
    """Whether the ranks of this machine use its GPUs; `device` is auto, cpu or cuda.

    Raises: ValueError if that is another word, or if there are fewer GPUs than ranks.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device} is not known; use auto, cpu or cuda")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and gpus == 0):
        return False
    if gpus == 0:
        raise ValueError("device=cuda but torch finds no CUDA GPU; use --device cpu or auto")
    if local_world_size > gpus:
        raise ValueError(
            f"nproc_per_node={local_world_size} is more than the {gpus} GPUs of this machine; "
            f"start torchrun with --nproc_per_node={gpus}"
        )
    return True
