"""What `--mask-documents` costs on the CPU, and what it does to the loss of a small network.

    python bench/document_masks.py --data data/demo
    python bench/document_masks.py --cases gpt2 --rounds 2 --seeds 0

Time: two learners of one network take the same step in turns: masked, plain, plain, masked, in CPU
seconds of one thread. Loss: networks of the demo are trained with and without, from the same seed
on the same windows. Both are validated in both ways: within documents, and across the window.
Prints Markdown and writes one JSON file.
"""

import logging
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.bare_run import BARE, NETWORKS, bare_learner, bare_loader, uses_muon
from bench.provenance import RESULTS, provenance
from data_prep.dataset.shards import open_data_set
from data_prep.order.training_data import open_training_data
from eval.subject import Subject
from eval.tasks.mixture_loss import mixture_loss
from parallel.ranks import Ranks, silence_other_ranks, start, user_errors
from storage.atomic import write_json
from storage.option_values import check_at_least
from storage.script_options import parse_options
from train.config import Config
from train.experiments.intervals import Interval, mean_interval
from train.optimizers.muon import MuonConfig
from train.presets import PRESETS
from train.schedule import learning_rate
from train.step import StepBatch

_WAYS = ("masked", "plain")
_TURNS = ("masked", "plain", "plain", "masked")
_LR = 1e-5
_DEMO_IDS = 4096
_DOCUMENT = 500  # tokens, on average, of the made-up windows
_VAL_TOKENS = 16_384
log = logging.getLogger("train")


@dataclass(frozen=True)
class _Step:
    """A step: network, windows, their length, and the micro-batch."""

    network: str
    windows: int
    context_length: int
    micro_batch: int


_STEPS = {
    "demo": _Step("demo-modern", 16, 128, 4),
    "gpt2": _Step("gpt2", 1, 1024, 1),
}


@dataclass(frozen=True)
class Arguments:
    """Measure what attention within documents costs, and what it does to the loss."""

    data: Path = Path("data/demo")
    """Data set folder of the networks that are trained."""
    cases: tuple[str, ...] = tuple(_STEPS)
    """Steps to time, by name."""
    rounds: int = 6
    """Rounds of each case: four steps."""
    seeds: int = 2
    """Seeds of the demo's network to train in both ways. 0: none."""
    steps: int = 200
    """Steps of each training run."""
    out: Path = RESULTS / "document_masks.json"
    """Result file."""

    def __post_init__(self) -> None:
        check_at_least("rounds", self.rounds, 2)
        check_at_least("seeds", self.seeds, 0)
        check_at_least("steps", self.steps, 2)
        for name in self.cases:
            if name not in _STEPS:
                raise ValueError(f"there is no case {name}; choose from {', '.join(_STEPS)}")


def _time_steps(case: _Step, rounds: int, ranks: Ranks) -> dict[str, Any]:
    """CPU seconds of every step of both learners."""
    network = replace(NETWORKS[case.network], context_length=case.context_length)
    if uses_muon(network):
        network = replace(network, vocab_size=_DEMO_IDS)
    plain = replace(
        BARE,
        model=network,
        device="cpu",
        batch_tokens=case.windows * case.context_length,
        micro_batch=case.micro_batch,
        optimizer=MuonConfig() if uses_muon(network) else BARE.optimizer,
    )
    learners = {
        way: bare_learner(replace(plain, mask_documents=way == "masked"), ranks) for way in _WAYS
    }
    generator = torch.Generator().manual_seed(0)
    shape = case.windows, case.context_length + 1
    ids = torch.randint(network.vocab_size - 1, shape, generator=generator)
    opens = torch.rand(shape, generator=generator) < 1 / _DOCUMENT
    batch = StepBatch(0, 0, ids.masked_fill(opens, network.vocab_size - 1).to(torch.uint16))
    found: dict[str, list[float]] = {way: [] for way in _WAYS}
    for round_ in range(rounds + 1):
        for way in _TURNS if round_ else _WAYS:  # the first allocates moments and buffers
            began = time.process_time()
            learners[way].step(batch, _LR)
            if round_:
                found[way].append(time.process_time() - began)
    return {"case": asdict(case), "cpu_seconds": found}


def _trained(config: Config, ranks: Ranks) -> dict[str, float]:
    """Validation loss of a trained network, within documents and across the window."""
    data, steps = open_training_data(config.data), config.steps or 0
    learner = bare_learner(config, ranks)
    loader = bare_loader(config, learner)
    began = time.process_time()
    for step in range(steps):
        lr = learning_rate(step, steps, config.optimizer.lr, config.schedule)
        learner.step(loader.next_step(), lr)
    found = {"cpu_seconds": time.process_time() - began}
    loader.close()
    for name, masked in (("within", True), ("across", False)):
        subject = Subject(learner.model, data.tokenizer(), ranks, masked)
        length, dtype = learner.plan.context_length, learner.dtype
        measured = mixture_loss(subject, data, _VAL_TOKENS, length, 16, dtype)
        found[name] = measured["val/loss"]
    return found


def _learn(arguments: Arguments, ranks: Ranks) -> list[dict[str, Any]]:
    """Both ways of every seed."""
    preset = PRESETS["demo"]
    vocabulary = open_data_set(arguments.data).tokenizer().n_vocab
    rows = []
    for seed in range(1, arguments.seeds + 1):
        config = replace(
            BARE,
            data=(arguments.data,),
            model=replace(preset.model, vocab_size=vocabulary),
            optimizer=preset.optimizer,
            schedule=preset.schedule,
            batch_tokens=preset.batch_tokens,
            micro_batch=4,
            steps=arguments.steps,
            seed=seed,
            device="cpu",
        )
        both = {
            way: _trained(replace(config, mask_documents=way == "masked"), ranks) for way in _WAYS
        }
        rows.append({"seed": seed, "steps": arguments.steps} | both)
        log.info("seed %d: %s", seed, both)
    return rows


def cost_of(row: dict[str, Any]) -> Interval:
    """Masked over plain: the mean of the rounds' ratios, with its interval of 95 %."""
    masked, plain = (row["cpu_seconds"][way] for way in _WAYS)
    pairs = range(0, len(masked), 2)  # two steps of each in a round
    return mean_interval([sum(masked[i : i + 2]) / sum(plain[i : i + 2]) for i in pairs])


def loss_differences(rows: list[dict[str, Any]]) -> dict[str, Interval]:
    """Masked minus plain, in nats: each as it was trained, and both in each of the two ways."""
    pairs = [(row["masked"], row["plain"]) for row in rows]
    return {
        "each as it was trained": mean_interval([m["within"] - p["across"] for m, p in pairs]),
        "both within documents": mean_interval([m["within"] - p["within"] for m, p in pairs]),
        "both across the window": mean_interval([m["across"] - p["across"] for m, p in pairs]),
    }


def table_of(cases: dict[str, dict[str, Any]], learned: list[dict[str, Any]]) -> str:
    """Times and losses as Markdown."""
    lines = ["| step | masked, CPU s | plain, CPU s | ratio (95 %) | rounds |"] if cases else []
    lines += ["| --- | --: | --: | --: | --: |"] if cases else []
    for name, row in cases.items():
        masked, plain = (statistics.median(row["cpu_seconds"][way]) for way in _WAYS)
        one = cost_of(row)
        lines.append(
            f"| {name} | {masked:.3f} | {plain:.3f} | {one.mean:.3f} ({one.low:.3f} to "
            f"{one.high:.3f}) | {one.count} |"
        )
    if learned:
        lines += [
            "",
            f"| validation loss after {learned[0]['steps']} steps, masked - plain | nats ",
        ]
        lines[-1] += "(95 %) | seeds |"
        lines += ["| --- | --: | --: |"]
        for name, one in loss_differences(learned).items():
            interval = f"{one.mean:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
            lines.append(f"| {name} | {interval} | {one.count} |")
    return "\n".join(lines)


def main() -> None:
    """Time the steps, train the networks, print the tables, write the JSON file."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start("cpu")
        torch.set_num_threads(1)
        found: dict[str, Any] = provenance(("torch",)) | {"threads": 1}
        cases = {}
        for name in arguments.cases:
            cases[name] = _time_steps(_STEPS[name], arguments.rounds, ranks)
            log.info("%s", table_of({name: cases[name]}, []))
        learned = _learn(arguments, ranks) if arguments.seeds else []
        write_json(arguments.out, found | {"cases": cases, "learned": learned})
        log.info("%s", table_of(cases, learned))


if __name__ == "__main__":
    main()
