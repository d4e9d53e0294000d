"""Finds the operations for which a step would wait for the GPU: the host reads a value."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Each returns a value to Python, or a tensor whose size depends on values.
_READERS = {
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "bincount"),
}


class HostReads(TorchDispatchMode):
    """Counts them inside its block. It works on the CPU, where reading costs nothing."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        name = func.overloadpacket.__name__
        if name in _READERS or (name.startswith("index") and _by_mask(args)):
            self.found.append(name)
        return func(*args, **kwargs or {})


def _by_mask(args):
    """Whether an index is a mask, for which CUDA counts its elements first."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices)
