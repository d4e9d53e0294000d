"""What a start has chosen or found, as config.json records it under `run`."""

import torch

from model.fused_loss.head_and_loss import fuses_loss
from storage.metrics import Metrics
from train.memory.forecast import how_compiled, step_attention
from train.run import Run


def run_settings(run: Run, kinds: dict[str, str]) -> Metrics:
    """The derived settings of a run; `kinds` are of `processors`."""
    config, plan, device = run.config, run.plan, run.ranks.device
    settings: Metrics = {
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.steps,
        "batch_tokens": plan.tokens,
        "world_size": plan.world_size,
        "micro_batch": plan.micro_batch,
        "grad_accum_steps": plan.grad_accum_steps,
        "context_length": plan.context_length,
        "device": str(device.type),
        "dtype": str(run.learner.dtype).removeprefix("torch."),
        "attention": step_attention(config, run.model.config, run.ranks),
        "compiled": how_compiled(config, device),
        "fused_loss": str(fuses_loss(config.fused_loss, device)),
        "reduction": config.reduction,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **kinds,
    }
    if device.type == "cuda":  # on the CPU it changes no bit
        settings["recompute"] = config.recompute
    return settings
