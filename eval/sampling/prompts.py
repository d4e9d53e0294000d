"""Reads prompts from the command line, a file or standard input."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.tokenizer import without_surrogates
from parallel.collectives import on_main

_STANDARD_INPUT = Path("-")


def gather_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """The given prompts, then those of the file; if there are none, one empty prompt.

    An empty prompt starts a new document. Only rank 0 reads the file, because standard input can
    be read only once.
    Raises: ValueError on every rank if the file holds no prompts.
    """
    prompts = [without_surrogates(prompt) for prompt in given]
    return prompts + on_main(lambda: [] if file is None else read_prompts(file)) or [""]


def read_prompts(file: Path) -> list[str]:
    """The prompts in a file: one per line; in a .jsonl file, the `prompt` of each object.

    Spaces at the ends of a line are kept, empty lines are skipped. `-` is standard input.
    Raises: ValueError if the file cannot be read or holds no prompts.
    """
    try:
        raw = sys.stdin.buffer.read() if file == _STANDARD_INPUT else file.read_bytes()
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
            f"{file} holds no prompt; write one per line, or omit --prompt-file "
            "to start a new document"
        )
    if file.suffix == ".jsonl":
        return [_prompt_of(f"{file} line {number}", line) for number, line in numbered]
    return [line for _, line in numbered]


def _prompt_of(where: str, line: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{where} is not JSON ({error}); write {{"prompt": "…"}}') from error
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not isinstance(prompt, str):
        raise ValueError(f'{where} has no text under "prompt"; write {{"prompt": "…"}}')
    return without_surrogates(prompt)
