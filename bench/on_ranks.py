"""Starts a benchmark again as the ranks of a job on this machine."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from parallel.warm_process import rank_environments, shared_environment

_POLL_SECONDS = 0.1


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
        while None in (codes := [process.poll() for process in processes]):
            if any(codes):
                for process in processes:  # the others would wait for the one that failed
                    process.terminate()
            time.sleep(_POLL_SECONDS)
        if any(codes):
            errors.seek(0)
            raise ValueError(f"{' '.join(words)} failed: {errors.read()[-2000:]}")
