"""Prompts from the command line, a file or standard input."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.tokenizer import without_surrogates
from parallel.collectives import broadcast_object, raise_on_all_ranks
from parallel.ranks import Ranks

STANDARD_INPUT = Path("-")


def gather_prompts(given: Sequence[str], file: Path | None, ranks: Ranks) -> list[str]:
    """The prompts given, then those of the file; one empty prompt, a new document, if neither.

    Only rank 0 reads, because standard input can be read once.
    Raises: ValueError on every rank for a file that holds no prompts.
    """
    prompts, error = [without_surrogates(prompt) for prompt in given], None
    if ranks.is_main and file is not None:
        try:
            prompts += read_prompts(file)
        except ValueError as found:
            error = found
    raise_on_all_ranks(error)
    return broadcast_object(prompts) or [""]


def read_prompts(file: Path) -> list[str]:
    """The prompts in a file: one a line, or in .jsonl the `prompt` of each object.

    A line's spaces count, empty lines do not; `-` is standard input.
    Raises: ValueError for a file that cannot be read or holds no prompts.
    """
    try:
        raw = sys.stdin.buffer.read() if file == STANDARD_INPUT else file.read_bytes()
    except OSError as error:
        raise ValueError(
            f"the prompts in {file} cannot be read ({error.strerror}); give a text file"
        ) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}); save the prompts as UTF-8") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line]
    if not numbered:
        raise ValueError(
            f"{file} holds no prompt; write one a line, or leave --prompt-file out "
            "to begin a new document"
        )
    if file.suffix == ".jsonl":
        return [_prompt_of(f"{file} line {number}", line) for number, line in numbered]
    return [line for _, line in numbered]


def _prompt_of(where: str, line: str) -> str:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'{where} is not JSON ({error}); write {{"prompt": "…"}}') from error
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not isinstance(prompt, str):
        raise ValueError(f'{where} has no text under "prompt"; write {{"prompt": "…"}}')
    return without_surrogates(prompt)
