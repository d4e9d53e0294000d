"""Two configurations run in pairs of one seed, until the runs tell them apart.

The runs of a pair share the order of the data, if batch and context are the same, and the random
numbers of the initial weights up to the first tensor whose shape differs (all, if the networks are
equal): a seed draws the tensors one after another, in the order of `GPT.named_parameters`.
"""

import hashlib
import logging
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from data_prep.order.training_data import open_training_data
from model.config import GPTConfig
from model.gpt import GPT
from storage.exit_codes import USER_ERROR
from storage.terminal.printable import printable
from storage.terminal.quantities import short
from train.config import Config
from train.experiments.looks import LookPlan
from train.experiments.run_pairs import NAMES, RunPairs, has_diverged, pair_runs
from train.experiments.taken_runs import check_taken
from train.experiments.trial_check import check_trials
from train.experiments.trial_runs import Ended, TrialRunner
from train.experiments.trials import Trial, plan_trial
from train.experiments.verdict import Verdict, judge_pairs
from train.reporting.run_summary import summarize_run

_LONGEST_FOLDER = 60
_OWN_FLAGS = {"--seed", "--out", "--continue", "--branch"}
log = logging.getLogger("train")


class RunFailed(RuntimeError):
    """A run ended for a reason that has nothing to do with what is compared."""


class LivePairs:
    """The runs of both sides for the seeds 1, 2, 3, …, as far as they have been made."""

    def __init__(self, a: str, b: str, plan: LookPlan, out: Path, processes: int = 1) -> None:
        """Raises: ValueError if something is wrong with the two, before anything runs."""
        self.plan = plan
        self.sides = tuple(
            _trials(name, words, plan.looks[-1], out)
            for name, words in zip(NAMES, (a, b), strict=True)
        )
        if self.sides[0][0].config.out == self.sides[1][0].config.out:
            raise ValueError(f"A and B are both {a!r}; give B a change, such as --optimizer.lr")
        _check_data(*(trials[0].config for trials in self.sides))
        for trials in self.sides:
            check_taken(trials)
        first = [trials[0] for trials in self.sides]
        steps = check_trials(first, processes, out)
        _check_horizon([(trial.config, steps[trial.name]) for trial in first])
        self.taken = 0
        self.started = 0

    def introduction(self) -> str:
        """What will be run at most, and what the runs of a pair share."""
        looks = self.plan.looks
        most = 2 * looks[-1]
        after = ", ".join(str(look) for look in looks)
        a, b = (trials[0].config for trials in self.sides)
        return (
            f"at most {most} runs, seeds 1 to {looks[-1]}; judged after {after} pairs. "
            f"{shared_weights(a.network, b.network)}"
        )

    def verdicts(
        self, runner: TrialRunner, smallest: float | None
    ) -> Iterator[tuple[Verdict, RunPairs]]:
        """The verdict after each look, and its pairs, until one settles the matter.

        Raises: ValueError if the runs do not compare after all; RunFailed.
        """
        done = 0
        for look in self.plan.looks:
            new = [trial for n in range(done, look) for trial in (s[n] for s in self.sides)]
            done = look
            self._run(runner, new)
            a, b = (
                [summarize_run(trial.config.out, trial.name) for trial in side[:look]]
                for side in self.sides
            )
            pairs = pair_runs(a, b)
            verdict = judge_pairs(pairs, self.plan, smallest)
            yield verdict, pairs
            if verdict.settled:
                return

    def _run(self, runner: TrialRunner, trials: Sequence[Trial]) -> None:
        """Run what has not ended before."""
        waiting = [trial for trial in trials if not has_diverged(trial.folder)]
        self.taken += len(trials) - len(waiting)
        for ended in runner.run(waiting):
            self.taken += ended.taken
            self.started += not ended.taken
            _check_end(ended)
            how = "was there" if ended.taken else f"took {ended.seconds:.0f} s"
            log.info("%s %s", ended.trial.name, how)


def _trials(side: str, words: str, seeds: int, out: Path) -> list[Trial]:
    try:
        parts = shlex.split(words)
    except ValueError as error:  # a quotation mark that is not closed
        raise ValueError(f"{words!r} is no command line ({error}); close the quotation") from None
    given = _OWN_FLAGS & {part.partition("=")[0] for part in parts}
    if given:
        raise ValueError(
            f"{words!r} gives {min(given)}, but both sides start anew, with seeds and folders of "
            "the judge's; leave it out, and give --out to the judge"
        )
    folder = out / _folder_name(parts)
    first = plan_trial(parts, 1, folder / "s1", f"{side} seed 1")
    others = range(2, seeds + 1)
    return [first, *(first.with_seed(n, folder / f"s{n}", f"{side} seed {n}") for n in others)]


def _folder_name(parts: Sequence[str]) -> str:
    """A folder for the runs of a command line: as good as its words, and its own."""
    words = "_".join(part.removeprefix("--") for part in parts)
    name = re.sub(r"[^\w.=+-]", "_", words, flags=re.ASCII)
    if name == words and len(name) <= _LONGEST_FOLDER:
        return name or "gpt2"
    digest = hashlib.sha256(shlex.join(parts).encode()).hexdigest()[:6]
    return f"{name[: _LONGEST_FOLDER - 7]}_{digest}"


def _check_data(a: Config, b: Config) -> None:
    """Raises: ValueError if the two do not train or are not validated on the same tokens."""
    identities = [open_training_data(config.data).fingerprint[:16] for config in (a, b)]
    if identities[0] != identities[1]:
        raise ValueError(
            f"A trains on {a.data_text} ({identities[0]}), B on {b.data_text} ({identities[1]}); "
            "give both the same --data"
        )
    validated = [config.eval.validated_tokens for config in (a, b)]
    if validated[0] != validated[1]:
        raise ValueError(
            f"A is validated on {validated[0]} tokens, B on {validated[1]}; give both the same "
            "--eval.val-tokens"
        )


def _check_horizon(runs: Sequence[tuple[Config, int]]) -> None:
    """The runs with their steps. Raises: ValueError if they train on different token counts."""
    a, b = (
        (steps * config.batch_tokens, f"{steps} steps of {config.batch_tokens}")
        for config, steps in runs
    )
    if a[0] != b[0]:
        raise ValueError(
            f"A trains on {a[0]:,} tokens in all ({a[1]}), B on {b[0]:,} ({b[1]}); give both the "
            "same horizon, with --steps and --batch-tokens"
        )


def _check_end(ended: Ended) -> None:
    """Raises: ValueError or RunFailed if a run has not ended as one that counts."""
    if ended.code == 0 or has_diverged(ended.trial.folder):
        return
    lines = ended.trial.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = printable(lines[-1].removeprefix("error: ")) if lines else "it printed nothing"
    if ended.code == USER_ERROR:
        raise ValueError(f"{ended.trial.name}: {last}")
    raise RunFailed(
        f"{ended.trial.name} ended with code {ended.code} ({last}); see {ended.trial.log}. The "
        "same command takes what is finished and continues"
    )


def shared_weights(a: GPTConfig, b: GPTConfig) -> str:
    """Which initial weights two networks have in common if their seeds are equal."""
    if a == b:
        return "The runs of a pair have the same initial weights."
    drawn = []
    for config in (a, b):
        with torch.device("meta"):
            drawn.append([(n, p.shape) for n, p in GPT(config).named_parameters() if p.dim() > 1])
    common = 0
    for one, other in zip(*drawn, strict=False):
        if one != other:
            break
        common += one[1].numel()
    whole = sum(shape.numel() for _, shape in drawn[0])
    return (
        f"The runs of a pair draw the same numbers for the first {short(common)} of A's "
        f"{short(whole)} initial weights: up to the first tensor whose shape differs."
    )
