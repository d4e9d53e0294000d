"""The loss of a network foretold from four smaller ones, then the network trained to see.

    python bench/ladder.py --data data/prose_512 --out runs/ladder
    python bench/ladder.py --data data/prose_512 --out runs/ladder --forecast-only
    python bench/ladder.py --runs runs/small_* runs/middle_* runs/large_* --flops 1e15

Each size of `modern` is trained once for each seed, on tokens in proportion to its parameters: new
ones, so the data must have enough. A seed is one draw: a line through its four losses over compute
(bench/ladder_fit.py) gives the loss of the fifth size, with its interval. The forecast is in
`forecast.json` in --out before the first run of that size begins. Each run is an ordinary run
folder, and the same command continues with those that are missing.

With --runs nothing is trained: the line is that of finished runs.
Writes JSON, a Markdown table and a picture.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.ladder_fit import LEAST_SIZES
from bench.ladder_plan import Recipe, Rung, check_sizes, plan_rungs
from bench.ladder_report import check_sentence, draw, markdown, summary
from bench.ladder_results import Ladder, check_found, foretold, line_of_runs, losses_of
from bench.provenance import RESULTS, provenance
from data_prep.dataset.shards import open_data_set
from storage.atomic import write_json, write_text
from storage.option_values import check_at_least, check_output_file
from storage.script_options import parse_options
from storage.terminal.standard_output import tolerate_lost_output
from storage.user_errors import exit_on_user_error
from train.experiments.trial_runs import TrialRunner

_OUT = RESULTS / "ladder.json"

log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Foretell the loss of a network from smaller ones."""

    data: Path = Path("data/prose_512")
    """Data set folder; bench/README.md says how it is made."""
    out: Path = Path("runs/ladder")
    """Folder for the runs."""
    sizes: tuple[str, ...] = ("1x24", "1x32", "1x40", "1x48")
    """Small sizes, each as layers and width."""
    predict: str = "1x56"
    """The size that is foretold."""
    head_width: int = 8
    """Width of a head of attention."""
    tokens_per_parameter: float = 20.0
    """Tokens of training for each parameter that is multiplied (without the embedding's table). 20
    is what https://arxiv.org/abs/2203.15556 found best for a given compute."""
    batch_tokens: int = 768
    """Tokens of a step of the smallest size."""
    batch_power: float = 2 / 3
    """The batch grows with this power of the parameters, so the steps grow slowly. 2/3 is that of
    https://arxiv.org/abs/2412.04403. 0: the same batch for all sizes."""
    val_tokens: int = 131_072
    """Tokens of each validation."""
    seeds: int = 5
    """Draws: each seed has a run of every size. At least 2, because the noise is theirs."""
    first_seed: int = 1
    """The first of the seeds; the others follow it."""
    checkpoints: int = 0
    """Checkpoints that each run of the fifth size keeps, such as for bench/averaging.py."""
    parallel: int = 1
    """Runs at the same time on this machine."""
    forecast_only: bool = False
    """Train the small sizes only."""
    runs: tuple[Path, ...] = ()
    """Finished runs of three sizes or more, on tokens in proportion to their parameters."""
    flops: tuple[float, ...] = ()
    """With --runs: FLOPs of trainings whose loss is foretold (model/cost.py says them)."""
    results: Path = _OUT
    """Result file; the table (.md) and the picture (.png) are written beside it."""

    def __post_init__(self) -> None:
        if any(flops <= 0 for flops in self.flops):
            raise ValueError("flops is out of range; use more than 0")
        check_at_least("head_width", self.head_width, 2)
        check_sizes((*self.sizes, self.predict), self.head_width)
        if len(self.sizes) < LEAST_SIZES:
            raise ValueError(f"sizes are {len(self.sizes)}; give {LEAST_SIZES} or more")
        check_at_least("seeds", self.seeds, 2, 1000)
        check_at_least("first_seed", self.first_seed, 0, 2**31)
        check_at_least("parallel", self.parallel, 1, 1000)
        check_at_least("checkpoints", self.checkpoints, 0, 1000)
        check_at_least("val_tokens", self.val_tokens, 128)
        if self.tokens_per_parameter <= 0:
            raise ValueError(
                f"tokens_per_parameter={self.tokens_per_parameter} is out of range; use more than 0"
            )
        if not 0 <= self.batch_power <= 1:
            raise ValueError(f"batch_power={self.batch_power} is out of range; use 0 to 1")
        if self.batch_tokens < 128 or self.batch_tokens % 128:
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is no multiple of 128, the context length; try "
                f"{-(-max(self.batch_tokens, 1) // 128) * 128}"
            )


def _train(rungs: Sequence[Rung], parallel: int) -> None:
    """Make the runs that are missing, small ones first.

    Raises: ValueError if one fails.
    """
    trials = [trial for rung in rungs for trial in rung.trials]
    with TrialRunner(parallel) as runner:
        for done, ended in enumerate(runner.run(trials), 1):
            if ended.code:
                raise ValueError(
                    f"{ended.trial.name} ended with code {ended.code}, see {ended.trial.log}; the "
                    "same command continues"
                )
            what = "was there" if ended.taken else f"{ended.seconds:.0f} s"
            log.info("%d of %d runs: %s (%s)", done, len(trials), ended.trial.name, what)


def _climb(arguments: Arguments) -> None:
    """Train the small sizes, foretell the fifth, train it, and report."""
    data = open_data_set(arguments.data)
    recipe = Recipe(
        arguments.data,
        arguments.batch_tokens,
        arguments.batch_power,
        arguments.tokens_per_parameter,
        arguments.head_width,
        arguments.val_tokens,
    )
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    names = (*arguments.sizes, arguments.predict)
    *small, fifth = plan_rungs(names, recipe, seeds, data, arguments.out)
    small.sort(key=lambda rung: rung.flops)
    if arguments.checkpoints:
        fifth = fifth.with_checkpoints(arguments.checkpoints)
    if fifth.flops <= small[-1].flops:
        raise ValueError(
            f"predict={fifth.name} is no larger than {small[-1].name}; give a larger size"
        )
    for rung in (*small, fifth):
        check_found(rung, data.fingerprint)
    head = provenance(("torch", "scipy")) | {"settings": _settings(arguments, data.fingerprint)}
    _train(small, arguments.parallel)
    ladder = foretold(small, fifth.flops)
    write_json(arguments.out / "forecast.json", head | asdict(ladder))
    log.info("%s", _sentence(fifth, ladder))
    if ladder.check is not None:
        log.info("%s", check_sentence(small[-1].name, ladder.check))
    if arguments.forecast_only:
        return
    _train([fifth], arguments.parallel)
    measured = losses_of(fifth)
    rungs = [*small, fifth]
    result = summary(rungs, ladder, measured)
    write_json(arguments.results, head | result)
    write_text(arguments.results.with_suffix(".md"), markdown(result))
    draw(rungs, ladder, measured, arguments.results.with_suffix(".png"))
    log.info("%s", markdown(result))


def _settings(arguments: Arguments, fingerprint: str) -> dict[str, Any]:
    kept = ("sizes", "predict", "head_width", "tokens_per_parameter", "batch_tokens", "batch_power")
    own = {name: getattr(arguments, name) for name in (*kept, "val_tokens", "seeds", "first_seed")}
    return own | {"data": arguments.data.name, "data_fingerprint": fingerprint}


def _sentence(fifth: Rung, ladder: Ladder) -> str:
    """The forecasts, in the order of the seeds."""
    told = ", ".join(f"{f.loss:.3f} ± {f.half_width:.3f}" for f in ladder.forecasts[:-1])
    size = f"{fifth.parameters:,} parameters, {fifth.tokens:,} tokens, {fifth.flops:.2e} FLOPs"
    return (
        f"{fifth.name} ({size}) will have a validation loss of, by seed: {told} nats per token "
        "(95 % intervals)"
    )


def _foretell_from_runs(arguments: Arguments) -> None:
    """Print what finished runs foretell."""
    line, points, check = line_of_runs(arguments.runs)
    log.info(
        "%d runs of %.2e to %.2e FLOPs: exponent %.3f, E %.2f nats per token; noise of seeds %.3f, "
        "misfit of the line %.3f",
        len(points),
        *(points[0].flops, points[-1].flops),
        *(line.exponent, line.floor, line.scatter.noise, line.scatter.misfit),
    )
    if check is not None:
        log.info("%s", check_sentence(f"{points[-1].flops:.2e} FLOPs", check))
    for flops in arguments.flops:
        log.info(
            "%.3e FLOPs: validation loss %.3f ± %.3f nats per token (95 %% of single runs)",
            *(flops, line.loss_at(flops), line.half_width(flops, 1)),
        )


def _check_results(path: Path) -> None:
    """Raises: ValueError if the results cannot be written to the path."""
    check_output_file("--results", path)
    if path.suffix != ".json":
        raise ValueError(
            f"results={path} does not end with .json, and .md and .png are written beside it; give "
            "a name such as ladder.json"
        )


def main() -> None:
    """Read the command line; train a ladder, or read the one that is there."""
    tolerate_lost_output()
    arguments = parse_options(Arguments, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with exit_on_user_error(ValueError, OSError):
        if bool(arguments.runs) != bool(arguments.flops):
            raise ValueError(
                "--runs and --flops belong together; give both, or neither to train a ladder"
            )
        _check_results(arguments.results)
        if arguments.runs:
            _foretell_from_runs(arguments)
        else:
            _climb(arguments)


if __name__ == "__main__":
    main()
