"""A trial: one run of an experiment, described by the words that start it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from storage.run_folder import RunFolder
from train.command_line.parse import parse
from train.config import Config


@dataclass(frozen=True)
class Trial:
    """A run that is planned, in progress or finished: an ordinary run in a folder of its own."""

    name: str
    words: tuple[str, ...]
    """The command line of train/main.py, with `--seed` and `--out`."""
    config: Config
    """What they say."""

    @property
    def folder(self) -> RunFolder:
        """The folder of the run."""
        return RunFolder(self.config.out)

    @property
    def log(self) -> Path:
        """What the run prints: a file beside its folder."""
        return self.config.out.with_name(f"{self.config.out.name}.log")

    def with_seed(self, seed: int, out: Path, name: str) -> Self:
        """The same run with another seed, in another folder."""
        words = (*self.words, "--seed", str(seed), "--out", str(out))  # the last ones count
        config = replace(self.config, seed=seed, out=out)
        return replace(self, name=name, words=words, config=config)


def plan_trial(words: Sequence[str] | str, seed: int, out: Path, name: str = "") -> Trial:
    """The trial with these words, a preset and flags, and this seed, in the folder `out`.

    `words` may be one string, as a person quotes it for a shell.
    Raises: ValueError if a setting refuses its value, or is not known.
    """
    given = shlex.split(words) if isinstance(words, str) else words
    whole = (*given, "--seed", str(seed), "--out", str(out))
    try:
        return Trial(name or out.name, whole, parse(list(whole)))
    except ValueError as error:
        raise ValueError(f"{shlex.join(given)}: {error}") from None
