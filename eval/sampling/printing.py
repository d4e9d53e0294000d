"""Writes samples to standard output: token by token, one after the other, or in two columns."""

import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from eval.sampling.decoding import PartialSample, Sample
from storage.terminal.json_output import json_line
from storage.terminal.printable import printable

SEPARATOR = "\n---\n"
_GAP = " │ "


def write(text: str) -> None:
    """Write `text` and flush; control characters, and those the encoding lacks, become escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(printable(text).encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


class Printer:
    """Writes finished samples in order, each as soon as all before it are written."""

    def __init__(self, prompts: Sequence[str], samples: int, *, streams: bool = True) -> None:
        """`samples` is per prompt. With `streams`, a single sample is written token by token."""
        self._prompts = prompts
        self._order = [(prompt, i) for prompt in range(len(prompts)) for i in range(samples)]
        self._streams = streams and len(self._order) == 1
        self._finished: dict[tuple[int, int], Sample] = {}
        self._begun = False

    def on_token(self, sample: PartialSample, new: str) -> None:
        """Write the new text of a single sample; of several, each one when it is finished."""
        if self._streams:
            prompt = "" if self._begun else self._prompts[0]
            self._begun = True
            write(prompt + new + ("\n" if sample.finish_reason else ""))
        elif sample.finish_reason:
            self.add(sample.to_sample())

    def add(self, sample: Sample) -> None:
        """Add a finished sample and write all samples that are next in order."""
        self._finished[sample.prompt_index, sample.sample_index] = sample
        while self._order and (ready := self._finished.pop(self._order[0], None)):
            del self._order[0]
            self.show(ready)

    def show(self, sample: Sample) -> None:
        """Write a sample that is next in order."""
        end = SEPARATOR if self._order else "\n"
        write(self._prompts[sample.prompt_index] + sample.text + end)


class JsonPrinter(Printer):
    """Writes each sample as one line of JSON."""

    def __init__(self, prompts: Sequence[str], samples: int, seed: int, checkpoint: str) -> None:
        super().__init__(prompts, samples, streams=False)
        self._origin = {"checkpoint": checkpoint, "seed": seed}

    def show(self, sample: Sample) -> None:
        """Write a sample that is next in order."""
        write(sample_line(self._origin, self._prompts, sample))


def sample_line(origin: dict[str, Any], prompts: Sequence[str], sample: Sample) -> str:
    """A sample as one line of JSON; `origin`: what is true of all samples."""
    return json_line(origin | {"prompt": prompts[sample.prompt_index]} | asdict(sample))


def write_pairs(
    names: tuple[str, str],
    prompts: Sequence[str],
    pairs: Sequence[tuple[Sample, Sample]],
    width: int | None = None,
) -> None:
    """Write the samples of two checkpoints for each prompt in two columns.

    Units: `width` in terminal cells; default: the width of the terminal.
    """
    width = width or shutil.get_terminal_size().columns
    heads = "\n".join(side_by_side(*names, width))
    blocks = []
    for left, right in pairs:
        lines = side_by_side(left.text, right.text, width)
        prompt = prompts[left.prompt_index]
        blocks.append("\n".join([prompt, "", *lines] if prompt else lines))
    write(heads + SEPARATOR + SEPARATOR.join(blocks) + "\n")


def side_by_side(left: str, right: str, width: int) -> Iterator[str]:
    """The lines of two texts in two columns. Units: `width` of both in terminal cells."""
    column = max(1, (width - len(_GAP)) // 2)
    for one, other in zip_longest(wrapped(left, column), wrapped(right, column), fillvalue=""):
        yield (one + " " * (column - cells(one)) + _GAP + other).rstrip(" ")


def wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of at most `width` terminal cells, broken at spaces where possible."""
    for line in text.expandtabs(4).replace("\r", "").split("\n"):
        rest = "".join("\ufffd" if unicodedata.category(c) == "Cc" else c for c in line)
        while cells(rest) > width:
            fits = 1
            while cells(rest[: fits + 1]) <= width:
                fits += 1
            space = rest.rfind(" ", 1, fits + 1)
            yield rest[: space if space > 0 else fits]
            rest = rest[space + 1 if space > 0 else fits :]
        yield rest


def cells(text: str) -> int:
    """Terminal cells that `text` takes: two for a wide character, none for a combining accent."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
