"""Copies the state of a run to host memory while training continues.

The state is a flat dict of tensors: `weights.NAME` and `optimizer.KEY.NAME`, with GPT-2's parameter
names.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from model.checkpoint import named_weights
from model.gpt import GPT

WEIGHTS, OPTIMIZER = "weights.", "optimizer."


def state_tensors(model: GPT, optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors that an update changes (weights and optimizer state), without a copy."""
    tensors = {}
    for name, parameter in named_weights(model):
        tensors[WEIGHTS + name] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{OPTIMIZER}{key}.{name}"] = value.detach()
    return tensors


class HostCopy:
    """Copies a state into buffers in host memory, which are reused for every save.

    On CUDA the copy runs on its own stream, in parallel with the next forward and backward passes.
    Only the next update waits for it, on the device. On the CPU the copy is done when `take`
    returns.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.allocated_bytes = 0
        """Host memory of the buffers; 0 before the first copy."""
        self._buffers: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if self.on_cuda else None
        self._copied: torch.cuda.Event | None = None
        self._updates: dict[int, torch.cuda.Event] = {}

    def take(self, tensors: dict[str, Tensor], queued_first: bool = True) -> dict[str, Tensor]:
        """Start a copy and return the buffers; they are complete after `wait`.

        The caller must not need the previous copy any more. With `queued_first` the copy waits for
        the work that is queued on the device; set it to False only if that work hangs.
        """
        # Allocating pinned memory synchronizes with the device and would wait for work that hangs.
        # A copy into pageable memory waits for its own stream only.
        pin = self.on_cuda and queued_first
        for name in self._buffers.keys() - tensors.keys():
            del self._buffers[name]
        for name, tensor in tensors.items():
            if name not in self._buffers:
                self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pin)
        self.allocated_bytes = sum(buffer.nbytes for buffer in self._buffers.values())
        if self._stream is None:
            for name, tensor in tensors.items():
                self._buffers[name].copy_(tensor)
            return dict(self._buffers)
        # Copy the state after the updates that are queued now, not a state in the middle of one.
        if queued_first:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for name, tensor in tensors.items():
                self._buffers[name].copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        return dict(self._buffers)

    def wait(self) -> None:
        """Wait until the copy is complete."""
        if self._copied is not None:
            self._copied.synchronize()

    def before_update(self, step: int) -> None:
        """Make update `step` wait on the device for the copy, and record an event before it."""
        if not self.on_cuda:
            return
        stream = torch.cuda.current_stream()
        if self._copied is not None:
            stream.wait_event(self._copied)
        # Only this step and the one before can be in flight, so older events are not needed.
        self._updates = {s: e for s, e in self._updates.items() if s >= step - 2}
        self._updates[step] = torch.cuda.Event()
        self._updates[step].record()

    def update_has_begun(self, step: int) -> bool:
        """Whether the device has reached update `step`, after which the state is not consistent."""
        event = self._updates.get(step)
        return event is not None and event.query()
