"""Faults to inject into a small run; as a script, it trains two ranks with each of them.

Under torchrun it runs every scene once and writes the results as JSON:
python -m torch.distributed.run --nproc_per_node=2 tests/faults.py DATA FOLDER RECIPE
"""

import json
import logging
import sys
import time
from pathlib import Path

import torch
from torch import nn

from parallel.collectives import all_gather_object
from parallel.ranks import start, stop
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.runs import RECIPES, lines, tiny_config
from train.build import build_run
from train.checkpoints.host_copy import state_tensors
from train.checks import StopTraining
from train.guards.replicas import checksums
from train.guards.spikes import GuardConfig
from train.loop import train
from train.preflight.dry_run import dry_run
from train.preflight.inputs import check_inputs


class Faulty(nn.Module):
    """Network and loss; `fault(run, loss)` returns the loss to use."""

    def __init__(self, run, fault):
        super().__init__()
        self.inner, self.run, self.fault = run.learner.step_model, run, fault

    def no_sync(self):
        return self.inner.no_sync()

    def forward(self, ids, targets):
        return self.fault(self.run, self.inner(ids, targets))


def with_fault(run, fault):
    """The same run, with every loss replaced by `fault(run, loss)`."""
    run.learner.reduction.module = Faulty(run, fault)
    return run


def scaled(step, factor):
    """A fault that multiplies the loss of one step by a factor."""
    return lambda run, loss: loss * factor if run.step == step else loss


def poison(run):
    """Make every loss and gradient of this run NaN."""
    norm, head = run.model.ln_f, run.model.head_weight
    weight = norm.weight if run.model.config.norm_weight else head
    weight.data.view(-1)[0] = float("nan")


def flip_bit(tensor, bit=0):
    """Flip one bit of a tensor's first element."""
    bits = tensor.data.view(torch.int32).view(-1)
    bits[0] = int(bits[0]) ^ (1 << bit)


class LogCapture(logging.Handler):
    """Keeps the messages that are logged."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def wait_for(path, seconds=30):
    """Wait for a file that another rank writes. Raises: TimeoutError."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} was not written")
        time.sleep(0.005)


def train_with(config, ranks, before=lambda run: None, fault=None):
    """Train with a fault; returns how it ended on each rank, and what the run folder contains."""
    run = build_run(config, ranks, check_inputs(config, ranks))
    captured, logger = LogCapture(), logging.getLogger("train")
    logger.addHandler(captured)
    logger.setLevel(logging.INFO)
    before(run)
    if fault is not None:
        with_fault(run, fault)
    try:
        end = train(run)
    except StopTraining as error:
        end = str(error)
    logger.removeHandler(captured)
    sums = checksums(state_tensors(run.model, run.learner.optimizer), torch.device("cpu")).tolist()
    run.close()
    everyone = all_gather_object((end, run.step, sums))
    saved = [int(p.name.split("_")[1]) for p in RunFolder(config.out).all_checkpoints()]
    return {
        "ends": [end for end, _, _ in everyone],
        "steps": [step for _, step, _ in everyone],
        "sums": everyone[0][2],
        "equal": all(sums == everyone[0][2] for *_, sums in everyone),
        "messages": captured.messages,
        "saved": saved,
        "lines": lines(config.out) if ranks.is_main else [],
        "boxes": sorted(p.name for p in (config.out / "blackbox").glob("*")),
    }


def scenes(data, folder, ranks, recipe):
    """The name and result of each scene, with the network and optimizer of `recipe`."""

    def config(name, **changes):
        return tiny_config(data, folder / name, micro_batch=1, **RECIPES[recipe] | changes)

    def on_rank_1(fault):
        return fault if ranks.rank == 1 else lambda run, loss: loss

    flipped = []

    def flips_at_3(run, loss):
        if run.step == 3 and not flipped:
            flipped.append(3)
            weight = run.model.h[1].mlp.c_fc.weight
            of_muon = run.learner.optimizer.state[weight].get("momentum")
            flip_bit(weight if of_muon is None else of_muon, bit=0 if of_muon is None else 20)
        return loss

    def slow_loader(run):
        if ranks.rank == 1:
            fast = run.loader.next_step
            run.loader.next_step = lambda: (time.sleep(0.3), fast())[1]

    def updates_alone(run):
        """In update 3, rank 1 waits until rank 0 is done with it."""
        done = folder / "rank_0_is_done"
        if ranks.rank == 0:
            run.learner.optimizer.register_step_post_hook(
                lambda *_: done.touch() if run.learner.updates == 3 else None
            )
        else:
            run.learner.before_update = lambda number: wait_for(done) if number == 3 else None

    yield "alone", train_with(config("alone", steps=5), ranks, before=updates_alone)
    save = SaveConfig(every=1, every_minutes=0, keep=99)
    yield "flip", train_with(config("flip", save=save), ranks, fault=on_rank_1(flips_at_3))
    guard = GuardConfig(every=4)
    yield "slow", train_with(config("slow", guard=guard), ranks, before=slow_loader)
    nan = scaled(3, float("nan"))
    yield "nan", train_with(config("nan"), ranks, fault=on_rank_1(nan))
    guard = GuardConfig(window=8, skip_spikes=6)
    spike = train_with(
        config("spike", steps=16, guard=guard), ranks, fault=on_rank_1(scaled(12, 1e4))
    )
    yield "spike", spike
    yield "poison", train_with(config("poison", steps=40), ranks, before=poison)
    skips = config("skips", skip_windows=("20:50",))
    yield "skips", train_with(skips, ranks)
    yield "plain", train_with(config("plain", steps=3), ranks)
    yield "dry_run", train_with(config("dry_run", steps=3), ranks, before=dry_run)


def main():
    data, folder, recipe = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    ranks = start("cpu")
    found = dict(scenes(data, folder, ranks, recipe))
    if ranks.is_main:
        (folder / "found.json").write_text(json.dumps(found))
    stop()


if __name__ == "__main__":
    main()
