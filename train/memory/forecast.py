"""What the cost model says of this run's step, and beside it what the first steps take."""

import importlib
import logging

import torch

from model.config import GPTConfig
from model.estimates.memory import StepShape
from model.estimates.prediction import Prediction, predict
from model.fused_loss import fuses_loss
from model.precision import choose_dtype
from parallel.ranks import Ranks
from storage.metrics import Metrics
from train.batch_plan import BatchPlan
from train.config import Config
from train.memory.host_memory import available, forget_peak, keeps_large_blocks, resident
from train.progress import Progress

FIRST_STEPS = 5
GIB = 2**30
log = logging.getLogger(__name__)


def compiles(config: Config, device: torch.device) -> bool:
    """Whether network and loss go through torch.compile."""
    return config.compile == "on" or (config.compile == "auto" and device.type == "cuda")


def step_shape(config: Config, ranks: Ranks, micro_batch: int, share: int) -> StepShape:
    """A rank's step as the cost model sees it; `share` is the rank's windows of one step."""
    return StepShape(
        micro_batch=micro_batch,
        dtype=choose_dtype(config.dtype, ranks.device),
        compiled=compiles(config, ranks.device),
        accumulates=micro_batch < share,
        world_size=ranks.world_size,
        device=ranks.device.type,
        fused_loss=fuses_loss(config.fused_loss, ranks.device),
        residual_bfloat16=config.residual == "bfloat16",
    )


def device_memory(ranks: Ranks) -> int:
    """Bytes that a rank may count on: its whole GPU, or its part of what the machine has left."""
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_properties(ranks.device).total_memory
    return available() // ranks.local_world_size


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: allocated on the GPU, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident("VmHWM")


def memory_at_first(config: Config, device: torch.device) -> int:
    """Bytes resident once everything is imported, which does not count; none on a GPU."""
    if device.type == "cuda":
        return 0
    importlib.import_module("torch._dynamo")  # which the optimizer would load
    if compiles(config, device):
        importlib.import_module("torch._inductor.compile_fx")
    return resident("VmRSS")


class Forecast:
    """Predicted memory and time of a step; told once, beside what was measured."""

    def __init__(
        self, config: Config, network: GPTConfig, plan: BatchPlan, ranks: Ranks, at_first: int
    ) -> None:
        """`at_first` is what `memory_at_first` said before anything was built."""
        share = plan.windows // plan.world_size
        name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ""
        self.step = step_shape(config, ranks, plan.micro_batch, share)
        self.said: Prediction = predict(network, self.step, name)
        self.device = ranks.device
        self.keeps_large_blocks = self.device.type == "cpu" and keeps_large_blocks()
        self.tokens = plan.tokens
        self.at_first = at_first

    def look(self, progress: Progress, host_copy: bool) -> Metrics:
        """What to add to the line of a step that was read: nothing but after the FIRST_STEPS.

        The first step's peak is not counted: what came before it may have taken more. `host_copy`
        says whether a checkpoint's copy is held, which counts on the CPU.
        """
        if progress.timed_steps == 1:
            self._forget_peak()
        if progress.timed_steps != FIRST_STEPS:
            return {}
        predicted = self.said.memory.peak
        if host_copy and self.device.type == "cpu":
            predicted += self.said.memory.host_copy
        measured = self.measured()
        found: Metrics = {
            "speed/predicted_memory_bytes": predicted,
            "speed/peak_memory_bytes": measured,
        }
        told = [_beside("peak memory", predicted / GIB, measured / GIB, "GiB")]
        if self.said.tokens_per_second is not None:
            milliseconds = 1000 * self.tokens / self.said.tokens_per_second
            found["speed/predicted_step_milliseconds"] = milliseconds
            took = _beside("step", milliseconds, 1000 * progress.step_seconds, "ms")
            told.append(f"{took} (at {self.said.mfu:.0%} MFU)")
        if self.keeps_large_blocks:
            told.append("the allocator keeps what is freed, evaluation's memory too")
        log.info("predicted and measured: %s", ";  ".join(told))
        return found

    def measured(self) -> int:
        """Most bytes so far, as the prediction counts them."""
        return peak_memory(self.device) - self.at_first

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            forget_peak()


def _beside(what: str, predicted: float, measured: float, unit: str) -> str:
    places = 2 if predicted < 100 else 0
    # Less than a tenth is not what this run took: the process held memory enough before.
    told = measured > predicted / 10
    off = f"{predicted / measured - 1:+.0%}" if told else "held before, not measured"
    return f"{what} {predicted:,.{places}f} and {measured:,.{places}f} {unit} ({off})"
