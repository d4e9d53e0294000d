"""Is B better than A? Runs both with the same seeds until the difference is told from noise.

    python train/judge.py "demo" "demo --optimizer.lr 6e-3"
    python train/judge.py "demo" "demo --micro-batch 4" --seeds 5 --parallel 2
    python train/judge.py runs/a_* -- runs/b_* --json verdict.json

A and B are command lines of train/main.py. Each seed trains both, so that order of the data and
initial weights are the same in a pair, and the noise that they make is not in the difference. It is
judged after 3, 5, 8, 12 and 20 pairs and ends as soon as B is better, worse, or closer to A than
--smallest. The chance of a wrong "better" or "worse" over all looks is at most --error-rate. What
is finished is taken, so the same command continues after an interruption; seeds and folders are the
judge's. With `--`, finished runs are judged, paired by their seeds.

What decides is the loss of the last validation. A run that diverged counts with its largest.
Exit code 0: there is a verdict, whichever (with --require, that one); 1: another one, or a run
failed; 2: a mistake, such as other data or another horizon.
"""

import logging
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from parallel.ranks import exit_on_interrupt
from storage.exit_codes import FAILED_CODE
from storage.option_values import check_at_least
from storage.script_options import parse_options
from storage.terminal.json_output import check_json_target, write_json_target
from storage.terminal.standard_output import tolerate_lost_output
from storage.user_errors import exit_on_user_error
from train.experiments.live_pairs import LivePairs, RunFailed
from train.experiments.looks import LEAST_PAIRS, looks_until, one_look
from train.experiments.run_pairs import RunPairs, pair_runs
from train.experiments.trial_runs import TrialRunner
from train.experiments.verdict import Verdict, judge_pairs
from train.experiments.verdict_text import Cost, figures, sentence
from train.reporting.run_folders import find_runs, read_runs
from train.reporting.run_summary import RunSummary

_MOST_SEEDS = 20
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Tell whether B is better than A."""

    sides: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """A and B, each a quoted command line of train/main.py: a preset, then changes. Or the folders
    of A's finished runs; then -- and B's."""
    seeds: int | None = None
    """Run exactly this many pairs and judge once. Default: --until-sure."""
    until_sure: bool = False
    """Run pairs until they are told apart, or closer than --smallest. The default."""
    most_seeds: int = _MOST_SEEDS
    """Pairs after which --until-sure gives up."""
    error_rate: float = 0.05
    """Largest chance that the verdict is better or worse where there is no difference."""
    smallest: float = 0.002
    """Difference of the losses that matters: --until-sure ends when it is excluded."""
    at: int | None = None
    """Compare finished or unfinished runs as they were after this step."""
    parallel: int = 1
    """Runs at the same time on this machine."""
    nproc: int = 1
    """Processes of each run."""
    out: Path = Path("runs/judge")
    """Folder for the runs; those of another comparison that are the same are taken."""
    require: Literal["better", "worse", "not-told-apart"] | None = None
    """Exit with code 1 if the verdict is another one."""
    json: Path | None = None
    """JSON file to write the verdict to; -: standard output."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", LEAST_PAIRS), ("most_seeds", LEAST_PAIRS), ("at", 1)):
            value = getattr(self, name)
            if value is not None:
                check_at_least(name, value, least)
        for name in ("parallel", "nproc"):
            check_at_least(name, getattr(self, name), 1)
        if not 0 < self.error_rate < 1:
            raise ValueError(f"error_rate={self.error_rate} is no chance; use 0.05, or 0.01")
        if not self.smallest >= 0:
            raise ValueError(f"smallest={self.smallest} is out of range; use 0 or more")
        if self.seeds is not None and self.until_sure:
            raise ValueError("--seeds and --until-sure contradict each other; give one of the two")
        check_json_target(self.json)

    def check_live(self) -> None:
        """Raises: ValueError for what is only for finished runs."""
        folders = [side for side in self.sides if find_runs([Path(side.strip())])[0]]
        if folders:
            raise ValueError(
                f"{folders[0]} holds a finished run, not a command line; give A's folders, then -- "
                "and B's"
            )
        if len(self.sides) != 2:
            raise ValueError(
                f"{len(self.sides)} sides; give two command lines in quotation marks, such as "
                '"demo" "demo --optimizer.lr 1e-3", or folders of finished runs with -- between'
            )
        if self.at is not None:
            raise ValueError("--at compares finished runs; give A's folders, then -- and B's")

    def check_finished(self) -> None:
        """Raises: ValueError for what is only for runs that the judge makes."""
        if self.seeds is not None or self.until_sure:
            raise ValueError(
                "--seeds and --until-sure are for command lines; of finished runs all are judged: "
                "name those that count"
            )


def _split(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The words without B's run folders, and these; None if there is no `--`."""
    if "--" not in words:
        # A side may begin with a flag, such as "--config own.toml"; no parser takes that for one.
        return [f" {word}" if re.match(r"--[\w.-]+\s", word) else word for word in words], None
    at = words.index("--")
    after = words[at + 1 :]
    count = next((n for n, word in enumerate(after) if word.startswith("-")), len(after))
    return [*words[:at], *after[count:]], after[:count]


def _read_group(name: str, words: tuple[str, ...] | list[str]) -> list[RunSummary]:
    """The summaries of a group's runs. Raises: ValueError if one cannot be read."""
    paths, others = find_runs([Path(os.path.expanduser(word)) for word in words])
    if not paths:
        named = ", ".join(map(str, others)) or "nothing was given"
        raise ValueError(f"{name}: no run is there ({named}); give run folders, such as runs/a_*")
    for path in others:
        log.info("passed over: %s is no run and holds none", path)
    runs, damaged = read_runs(paths)
    if damaged:
        path, reason = next(iter(damaged.items()))
        raise ValueError(f"{path} cannot be read ({reason}); leave it out, or restore it")
    return runs


def _judge_finished(arguments: Arguments, b_words: list[str]) -> dict[str, Any]:
    """Judge runs that are there. Raises: ValueError if they do not compare."""
    arguments.check_finished()
    groups = [_read_group("A", arguments.sides), _read_group("B", b_words)]
    pairs = pair_runs(*groups, at=arguments.at)
    plan = one_look(len(pairs.a), arguments.error_rate)
    return _report(judge_pairs(pairs, plan, arguments.smallest), pairs, 0, None)


def _judge_live(arguments: Arguments) -> dict[str, Any]:
    """Run pairs and judge them. Raises: ValueError if a side is wrong; RunFailed."""
    arguments.check_live()
    plan = looks_until(arguments.most_seeds, arguments.error_rate)
    if arguments.seeds is not None:
        plan = one_look(arguments.seeds, arguments.error_rate)
    a, b = arguments.sides
    live = LivePairs(a, b, plan, arguments.out, arguments.nproc)
    log.info("%s", live.introduction())
    began = _cpu_seconds()
    found: list[tuple[Verdict, RunPairs]] = []
    with TrialRunner(arguments.parallel, arguments.nproc) as runner:
        for verdict, pairs in live.verdicts(runner, arguments.smallest):
            log.info("after %d pairs: %s", len(pairs.a), verdict.word)
            found.append((verdict, pairs))
    verdict, pairs = found[-1]
    return _report(verdict, pairs, live.taken, _cpu_seconds() - began)


def _cpu_seconds() -> float:
    """Of all processes that were started and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _report(
    verdict: Verdict, pairs: RunPairs, taken: int, cpu_seconds: float | None
) -> dict[str, Any]:
    """Print the verdict and return it as JSON values."""
    runs = [end.run for end in (*pairs.a, *pairs.b)]
    tokens, seconds = sum(run.tokens for run in runs), sum(run.train_seconds for run in runs)
    cost = Cost(len(runs), taken, tokens, seconds, cpu_seconds)
    whole = sentence(verdict, pairs, cost)
    log.info("%s", "\n".join([whole, "", *figures(verdict, pairs)]))
    return {
        **verdict.as_json(),
        "sentence": whole,
        "unit": pairs.unit,
        "paired": pairs.paired,
        "differences": {key: list(values) for key, values in pairs.differences.items()},
        "runs": [
            {"side": side, "path": e.run.path, "seed": e.run.seed, "loss": e.loss}
            | ({"diverged": True} if e.diverged else {})
            for side, ends in (("a", pairs.a), ("b", pairs.b))
            for e in ends
        ],
        "cost": asdict(cost),
        "notes": list(pairs.notes),
    }


def main() -> None:
    """Read the command line, judge, and write what was asked for."""
    tolerate_lost_output()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    words, b_words = _split(sys.argv[1:])
    arguments = parse_options(Arguments, words, description=__doc__)
    with exit_on_interrupt(), exit_on_user_error(ValueError, OSError):
        try:
            if b_words is None:
                found = _judge_live(arguments)
            else:
                found = _judge_finished(arguments, b_words)
        except RunFailed as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(FAILED_CODE)
        write_json_target(arguments.json, found)
    wanted = arguments.require and arguments.require.replace("-", " ")
    if wanted and found["verdict"] != wanted:
        sys.exit(FAILED_CODE)


if __name__ == "__main__":
    main()
