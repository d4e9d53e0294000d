"""Memory and time of a step: what the cost model predicts, and what the first steps take."""

import importlib
import logging

import torch

from model.blocks import attention_backend
from model.config import GPTConfig
from model.documents.flex_blocks import uses_flex
from model.estimates.memory import StepShape
from model.estimates.prediction import Prediction, predict
from model.fused_loss.head_and_loss import fuses_loss
from model.precision import choose_dtype
from parallel.ranks import Ranks
from storage.metrics import Metrics
from train.batch_plan import BatchPlan
from train.config import Config
from train.memory.host_memory import available, forget_peak, keeps_large_blocks, resident
from train.progress import StepClock

FIRST_STEPS = 5
_GIB = 2**30
log = logging.getLogger(__name__)


def compiles(config: Config, device: torch.device) -> bool:
    """Whether network and loss go through torch.compile."""
    wanted = config.compile in ("on", "max")
    return wanted or (config.compile == "auto" and device.type == "cuda")


def how_compiled(config: Config, device: torch.device) -> str:
    """The same as config.json records it; `max` where kernels are tuned too."""
    return "max" if config.compile == "max" else str(compiles(config, device))


def step_attention(config: Config, network: GPTConfig, ranks: Ranks) -> str:
    """The kernel of attention in a step, as config.json records it, such as `flash`."""
    if attends_by_flex(config, network, ranks):
        return "flex"
    dtype = choose_dtype(config.dtype, ranks.device)
    return attention_backend(network, ranks.device, dtype, config.mask_documents)


def attends_by_flex(config: Config, network: GPTConfig, ranks: Ranks) -> bool:
    """Whether a step masks documents by flex attention, and not by a mask."""
    how = network.dropout, compiles(config, ranks.device), ranks.world_size
    return config.mask_documents and uses_flex(ranks.device, network.head_width, *how)


def step_shape(
    config: Config, network: GPTConfig, ranks: Ranks, micro_batch: int, share: int
) -> StepShape:
    """A rank's step as the cost model sees it; `share` is the rank's windows of one step."""
    return StepShape(
        micro_batch=micro_batch,
        dtype=choose_dtype(config.dtype, ranks.device),
        compiled=compiles(config, ranks.device),
        micro_steps=share // micro_batch,
        world_size=ranks.world_size,
        reduction=config.reduction,
        device=ranks.device.type,
        fused_loss=fuses_loss(config.fused_loss, ranks.device),
        recompute=config.recompute == "blocks",
        residual_bfloat16=config.residual == "bfloat16",
        mask_documents=config.mask_documents,
        update=config.optimizer.update_cost(network, ranks.device.type),
    )


def device_memory(ranks: Ranks) -> int:
    """Bytes that a rank can use: its whole GPU, or its share of the machine's available memory."""
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_properties(ranks.device).total_memory
    return available() // ranks.local_world_size


def _peak_memory(device: torch.device) -> int:
    """Peak bytes so far: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident("VmHWM")


def memory_at_first(config: Config, device: torch.device) -> int:
    """Bytes resident after the imports, which a prediction does not count; 0 on a GPU."""
    if device.type == "cuda":
        return 0
    importlib.import_module("torch._dynamo")  # torch.optim imports it with the first optimizer
    if compiles(config, device):
        importlib.import_module("torch._inductor.compile_fx")
    return resident("VmRSS")


class Forecast:
    """Predicts memory and time of a step, and reports them once beside the measured figures."""

    def __init__(self, config: Config, network: GPTConfig, ranks: Ranks, at_first: int) -> None:
        """`at_first` is what `memory_at_first` returned before anything was built."""
        self.config = config
        self.network = network
        self.ranks = ranks
        self.at_first = at_first
        self.keeps_large_blocks = ranks.device.type == "cpu" and keeps_large_blocks()

    def step_shape(self, plan: BatchPlan) -> StepShape:
        """A rank's step as the cost model sees it."""
        share = plan.windows // plan.world_size
        return step_shape(self.config, self.network, self.ranks, plan.micro_batch, share)

    def predict(self, plan: BatchPlan) -> Prediction:
        """What the cost model says of a step by this plan."""
        device = self.ranks.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        return predict(self.network, self.step_shape(plan), plan.tokens, name)

    def compare(self, clock: StepClock, plan: BatchPlan, host_copy: bool) -> Metrics:
        """What to add to the line of a step: nothing, except once the first few steps are timed.

        `host_copy` says whether memory for a checkpoint's copy is allocated, which counts on the
        CPU.
        """
        if clock.timed_steps == 1:
            self._reset_peak()  # what came before the steps may have taken more
        if clock.timed_steps != FIRST_STEPS:
            return {}
        prediction = self.predict(plan)
        predicted = prediction.memory.peak
        if host_copy and self.ranks.device.type == "cpu":
            predicted += prediction.memory.host_copy
        measured = self.measured()
        found: Metrics = {
            "speed/predicted_memory_bytes": predicted,
            "speed/peak_memory_bytes": measured,
        }
        parts = [_beside("peak memory", predicted / _GIB, measured / _GIB, "GiB")]
        if prediction.tokens_per_second is not None:
            milliseconds = 1000 * plan.tokens / prediction.tokens_per_second
            found["speed/predicted_step_milliseconds"] = milliseconds
            step = _beside("step", milliseconds, 1000 * clock.step_seconds, "ms")
            parts.append(f"{step} (at {prediction.mfu:.0%} MFU)")
        if prediction.update_share:
            parts.append(f"the optimizer's update {prediction.update_share:.2%} of a rank's FLOPs")
        log.info("predicted and measured: %s", parts[0])
        for part in parts[1:]:
            log.info("  %s", part)
        return found

    def measured(self) -> int:
        """Peak bytes so far, counted as the prediction counts them."""
        return _peak_memory(self.ranks.device) - self.at_first

    def _reset_peak(self) -> None:
        if self.ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.ranks.device)
        else:
            forget_peak()


def _beside(what: str, predicted: float, measured: float, unit: str) -> str:
    places = 2 if predicted < 100 else 0
    # Less than a tenth is not what this run took: the process had enough memory before.
    plausible = measured > predicted / 10
    off = f"{predicted / measured - 1:+.0%}" if plausible else "held before, not measured"
    return f"{what} {predicted:,.{places}f} and {measured:,.{places}f} {unit} ({off})"
