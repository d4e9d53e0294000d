"""Plant forgeries in tiny runs and audit them; audit honest runs too.

    python bench/forgeries.py --data DATA --out bench/results/forgeries.json

Each forgery of bench/forged_runs.py is audited twice: as an edit that leaves the chain of digests
alone, and with all digests computed again. Every segment is repeated, so that the forged one is.
The honest runs have kills, branches, skipped windows and updates, other micro-batches, changed
settings, Muon, bfloat16 and dropout; those of two ranks are audited on one. The table is written
beside the JSON, as .md.
"""

import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.bare_run import BARE
from bench.edited_records import EVERY, STEPS, seal
from bench.forged_runs import FORGERIES, Forgery, noted_stream
from bench.forgery_table import table_of
from bench.provenance import RESULTS, provenance
from eval.training_config import EvalConfig
from model.config import GPTConfig
from parallel.ranks import Ranks, silence_other_ranks, start, user_errors
from storage.atomic import write_json, write_text
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from storage.script_options import parse_options
from train.audit import Arguments as AuditArguments
from train.audit import audit
from train.auditing.recorded_run import read_recorded_run
from train.auditing.verdict import AuditVerdict
from train.build import build_run
from train.config import Config
from train.guards.spikes import GuardConfig
from train.loop import train
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.optimizers.sgd import SGDConfig
from train.preflight.inputs import check_inputs
from train.recovery.resume_proof.kills import Job
from train.schedule import ScheduleConfig

log = logging.getLogger("train")
_OPTIMIZERS = {"adamw": AdamWConfig(lr=1e-2), "muon": MuonConfig(), "sgd": SGDConfig(lr=0.1)}


@dataclass(frozen=True)
class Arguments:
    """Count found forgeries and accused honest runs."""

    data: Path = Path("data/demo")
    """Data set folder. A small vocabulary makes it faster."""
    other_data: Path | None = None
    """Another data set with the same tokenizer. Default: that forgery is left out."""
    seeds: int = 3
    """Seeds of each kind of honest run."""
    out: Path = RESULTS / "forgeries.json"
    """JSON file of the results."""


def _config_of(data: Path, out: Path, **changes: Any) -> Config:
    """A run of STEPS steps with a checkpoint every EVERY steps, all of them kept."""
    return replace(
        BARE,
        data=(data,),
        out=out,
        steps=STEPS,
        batch_tokens=8 * 16,
        micro_batch=2,
        context_length=None,
        device="cpu",
        rehearsal=False,
        model=GPTConfig(n_layer=1, n_head=1, n_embd=8, context_length=16),
        optimizer=AdamWConfig(lr=1e-2),
        schedule=ScheduleConfig(warmup_steps=2),
        eval=EvalConfig(every=8, val_tokens=64, tasks_every=0, tasks=()),
        save=SaveConfig(every=EVERY, every_minutes=0, keep=99),
        guard=GuardConfig(every=0),
        **changes,
    )


def _make(config: Config, ranks: Ranks) -> None:
    """Train in this process."""
    run = build_run(config, ranks, check_inputs(config, ranks))
    try:
        run.folder.write_status(train(run), run.step)
    finally:
        run.close()


def _audited(folder: Path, ranks: Ranks, segments: int = 99) -> AuditVerdict:
    """The verdict on a run, all of whose segments are repeated."""
    run = read_recorded_run(folder)
    return audit(AuditArguments(run=folder, segments=segments, seed=0), run, ranks)


def _problems(folder: Path, ranks: Ranks, segments: int = 99) -> tuple[list[str], list[str]]:
    """What the records showed, and what repeating has; an audit that cannot begin has found it."""
    try:
        verdict = _audited(folder, ranks, segments)
    except ValueError as error:
        return [str(error)], [str(error)]
    chain = [f"{f.what}: {f.detail}" for f in verdict.chain if not f.holds]
    return chain, [problem for s in verdict.segments for problem in s.problems]


def _forge(forgery: Forgery, arguments: Arguments, place: Path, ranks: Ranks) -> dict[str, Any]:
    """Plant a forgery, audit it with the chain as it is and computed again."""
    run = place / "forged"
    shutil.rmtree(run, ignore_errors=True)
    if forgery.trained is None and forgery.edit is not None:
        shutil.copytree(place / "honest", run, symlinks=True)
    else:
        settings = dict(forgery.trained or {})
        data = arguments.other_data if settings.pop("data", None) else arguments.data
        assert data is not None
        changes: dict[str, Any] = {}
        config = _config_of(data, run)
        if "clip" in settings:
            changes["optimizer"] = replace(config.optimizer, clip=settings.pop("clip"))  # type: ignore[call-arg]
        with noted_stream(), forgery.cheat():
            _make(replace(config, **changes, **settings), ranks)
    found: dict[str, Any] = {"name": forgery.name}
    if forgery.edit is not None:
        forgery.edit(run)
        seal(run, chain=False)
        if forgery.chained:
            found["by_records"] = _problems(run, ranks, 0)[0]
        seal(run, chain=True)
    by_records, by_repeating = _problems(run, ranks)
    return found | {"chain_again_by_records": by_records, "by_repeating": by_repeating}


# --- honest runs ---


def _continued(config: Config, ranks: Ranks, at: int, **changes: Any) -> None:
    """A run that is killed after a checkpoint at `at`, or later, and continues with changes."""
    _make(config, ranks)
    folder = RunFolder(config.out)
    for checkpoint in folder.all_checkpoints():
        if int(checkpoint.name[5:]) > at:
            shutil.rmtree(checkpoint)
    folder.write_status("running", at)
    _make(replace(config, **changes), ranks)


def _branched(config: Config, ranks: Ranks) -> None:
    parent = replace(config, out=config.out.with_name("parent"))
    shutil.rmtree(parent.out, ignore_errors=True)
    _make(parent, ranks)
    steps = {"branch": parent.out / "checkpoints" / "step_000012", "allow": ("steps",)}
    _make(replace(config, steps=STEPS + EVERY, **steps), ranks)


def _on_two_ranks(config: Config, reduction: str) -> None:
    """The same run by train/main.py on two ranks."""
    words = [
        *("gpt2", "--data", *config.data, "--out", config.out, "--device", "cpu"),
        *("--steps", STEPS, "--batch-tokens", 128, "--micro-batch", 2, "--seed", config.seed),
        *("--optimizer.lr", 0.01, "--schedule.warmup-steps", 2, "--model.n-layer", 1),
        *("--model.n-head", 1, "--model.n-embd", 8, "--context-length", 16, "--eval.every", 8),
        *("--eval.val-tokens", 64, "--eval.tasks-every", 0, "--sample.every", 0),
        *("--save.every", EVERY, "--save.every-minutes", 0, "--save.keep", 99, "--no-rehearsal"),
        *("--reduction", reduction),
    ]
    Job([str(word) for word in words], config.out, 2, 0).run_to_end()


def _honest_runs(
    arguments: Arguments, place: Path, ranks: Ranks
) -> Iterator[tuple[str, Path, Callable[[], None]]]:
    """What each honest run is called, its folder, and what makes it."""
    kinds: dict[str, Callable[[Config], None]] = {
        "killed, and continued from step 8": lambda c: _continued(c, ranks, 8),
        "continued with another micro-batch": lambda c: _continued(c, ranks, 12, micro_batch=4),
        "continued with half the rate": lambda c: _continued(
            c, ranks, 8, optimizer=AdamWConfig(lr=5e-3), allow=("optimizer.lr",)
        ),
        "branched from another run": lambda c: _branched(c, ranks),
        "windows skipped": lambda c: _make(replace(c, skip_windows=("30:40", "90:91")), ranks),
        "windows skipped after a kill": lambda c: _continued(
            c, ranks, 12, skip_windows=("110:120",), allow=("skip_windows",)
        ),
        "spikes skipped": lambda c: _make(
            replace(c, guard=GuardConfig(window=8, skip_spikes=2, every=0)), ranks
        ),
        "bfloat16": lambda c: _make(replace(c, dtype="bfloat16"), ranks),
        "dropout": lambda c: _make(replace(c, model=replace(c.model, dropout=0.1)), ranks),
        "gradients summed in a tree": lambda c: _make(replace(c, reduction="tree"), ranks),
    }
    for name, optimizer in _OPTIMIZERS.items():
        kinds[name] = lambda c, o=optimizer: _make(replace(c, optimizer=o), ranks)
        kinds[f"{name}, killed"] = lambda c, o=optimizer: _continued(
            replace(c, optimizer=o), ranks, 16
        )
    two = min(arguments.seeds, 2)
    for seed in range(1, arguments.seeds + 1):
        for name, maker in kinds.items():
            config = _config_of(arguments.data, place / "sound", seed=seed)
            yield f"{name}, seed {seed}", config.out, lambda m=maker, c=config: m(c)
    for seed in range(1, two + 1):
        config = _config_of(arguments.data, place / "sound", seed=seed)
        for reduction in ("ddp", "tree"):
            name = f"two ranks ({reduction}), audited on one, seed {seed}"
            yield name, config.out, lambda c=config, r=reduction: _on_two_ranks(c, r)


def _accusations(arguments: Arguments, place: Path, ranks: Ranks) -> list[dict[str, Any]]:
    found = []
    for name, folder, maker in _honest_runs(arguments, place, ranks):
        shutil.rmtree(folder, ignore_errors=True)
        maker()
        verdict = _audited(folder, ranks)
        exact = sum(s.how == "bit for bit" for s in verdict.segments)
        problems = [p for s in verdict.segments for p in s.problems]
        problems += [f"{f.what}: {f.detail}" for f in verdict.chain if not f.holds]
        found.append(
            {"name": name, "segments": len(verdict.segments), "exact": exact, "problems": problems}
        )
        log.info("%s: %s", name, problems or "not accused")
    return found


def main() -> None:
    """Plant, audit, write the table."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start("cpu")
        origin = provenance(("torch", "numpy"))
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            _make(_config_of(arguments.data, place / "honest"), ranks)
            _make(_config_of(arguments.data, place / "sibling", seed=7), ranks)
            longer = replace(_config_of(arguments.data, place / "longer"), steps=STEPS + EVERY)
            _make(longer, ranks)
            forgeries = [
                f for f in FORGERIES if "data" not in (f.trained or {}) or arguments.other_data
            ]
            forged = []
            for forgery in forgeries:
                forged.append(_forge(forgery, arguments, place, ranks))
                log.info("%s: %s", forgery.name, forged[-1])
            honest = _accusations(arguments, place, ranks)
    seconds = round(time.process_time() - began, 1)
    text = table_of(forged, honest)
    write_json(arguments.out, origin | {"cpu_seconds": seconds, "forged": forged, "honest": honest})
    write_text(arguments.out.with_suffix(".md"), text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
