"""Starts a benchmark again as the ranks of a job on this machine."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from parallel.warm_process import rank_environments, shared_environment


def run_on_ranks(
    script: str, words: Sequence[str], ranks: int, variables: Mapping[str, str] | None = None
) -> None:
    """Run `python SCRIPT WORDS` as this number of ranks, without torchrun.

    They share out the machine's cores. `variables` are added to the environment.
    Raises: ValueError with the end of what the ranks wrote if one of them failed.
    """
    environment = shared_environment(ranks) | dict(variables or {})
    command = [sys.executable, str(Path(script).resolve()), *words]
    with tempfile.TemporaryFile("w+") as errors:
        processes = [
            subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL, stderr=errors)
            for own in rank_environments(environment, ranks)
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            errors.seek(0)
            raise ValueError(f"{' '.join(words)} failed: {errors.read()[-2000:]}")
