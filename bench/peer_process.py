"""Runs another trainer in a process of its own, so that its allocator settings are its own."""

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch


class Steps(Protocol):
    """A trainer that takes one step at a time."""

    def step(self) -> torch.Tensor:
        """One optimizer step; returns its loss."""
        ...


class PeerProcess:
    """A trainer that `build(*arguments)` makes in a new process, with the threads of this one."""

    def __init__(self, build: Callable[..., Steps], *arguments: Any) -> None:
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        work = (theirs, torch.get_num_threads(), build, *arguments)
        self._process = context.Process(target=_serve, args=work, daemon=True)
        self._process.start()
        theirs.close()

    def step(self) -> torch.Tensor:
        """One optimizer step in that process. Raises: EOFError if the process has ended."""
        self._ours.send(True)
        return torch.tensor(self._ours.recv())

    @property
    def exit_code(self) -> int | None:
        """The exit code of the process; None while it runs."""
        return self._process.exitcode

    def close(self) -> None:
        """End the process and wait for it."""
        self._ours.close()
        self._process.join()


def _serve(parent: Connection, threads: int, build: Callable[..., Steps], *arguments: Any) -> None:
    torch.set_num_threads(threads)
    trainer = build(*arguments)
    while True:
        try:
            parent.recv()
        except EOFError:  # the parent has closed its end
            return
        parent.send(trainer.step().item())
