"""A trainer beside ours, in a process of its own: each has the allocator that it ships with."""

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch


class Steps(Protocol):
    """Something that trains."""

    def step(self) -> torch.Tensor:
        """One optimizer step; returns its loss."""
        ...


class PeerProcess:
    """`build(*arguments)` in a new process, with as many threads as this one has."""

    def __init__(self, build: Callable[..., Steps], *arguments: Any) -> None:
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        work = (theirs, torch.get_num_threads(), build, *arguments)
        self._process = context.Process(target=_serve, args=work, daemon=True)
        self._process.start()
        theirs.close()

    def step(self) -> torch.Tensor:
        """One optimizer step over there, waited for. Raises: EOFError if the process has ended."""
        self._ours.send(True)
        return torch.tensor(self._ours.recv())

    @property
    def exit_code(self) -> int | None:
        """Of the process; None while it lives."""
        return self._process.exitcode

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.join()


def _serve(asked: Connection, threads: int, build: Callable[..., Steps], *arguments: Any) -> None:
    torch.set_num_threads(threads)
    side = build(*arguments)
    while True:
        try:
            asked.recv()
        except EOFError:
            return
        asked.send(side.step().item())
