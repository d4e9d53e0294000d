"""Continues prompts with a model, or with two models to compare them.

    python eval/generate.py --checkpoint runs/gpt2
    python eval/generate.py --checkpoint runs/gpt2 --prompt "Once upon a time"
    python eval/generate.py --checkpoint A --compare B --prompt-file prompts.txt

Without a prompt, on a terminal, it reads prompts line by line until Ctrl-D. Texts go to standard
output (a single sample token by token), messages to standard error. Runs on one process or under
torchrun, which splits the batches over the ranks and changes no text.
"""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from eval.sampling.decoding import (
    OnToken,
    Sample,
    ignore_token,
    sample_on_ranks,
    start_samples,
)
from eval.sampling.next_token import GenerateOptions
from eval.sampling.printing import JsonPrinter, Printer, sample_line, write_pairs
from eval.sampling.prompt_loop import PromptLoop
from eval.sampling.prompts import gather_prompts
from eval.subject import Subject, load_subject
from parallel.collectives import on_main
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from storage.atomic import write_text
from storage.script_options import parse_options
from storage.terminal.json_output import STANDARD_OUTPUT, check_json_target, log_to_stderr

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Continue prompts with a trained model.

    When a text fills the model's context, the newer half is kept and encoded again. A prompt longer
    than the context is cut in the same way. The same seed gives the same text on any number of
    ranks. Another --batch-size rounds differently, which can change a near-tie between two tokens.
    """

    checkpoint: Path
    """Folder of a run (its newest sound checkpoint) or of a checkpoint; or a model
    of Hugging Face, as a folder or an id of its Hub, which is imported once."""
    compare: Path | None = None
    """A second one; its texts are printed next to those of the first."""
    prompt: tuple[str, ...] = ()
    """Prompts to continue. An empty one starts a new document.
    Without any: typed line by line on a terminal, else one empty prompt."""
    prompt_file: Path | None = None
    """File with more prompts: one per line, or .jsonl with the key "prompt"; -: standard input."""
    json: Path | None = None
    """File to write one JSON object per line and sample to; -: standard output, without texts."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses CUDA if it is available."""
    sampling: GenerateOptions = GenerateOptions()
    """How tokens are sampled."""

    def __post_init__(self) -> None:
        check_json_target(self.json)


def _sample_prompts(
    subject: Subject,
    prompts: Sequence[str],
    options: GenerateOptions,
    on_token: OnToken = ignore_token,
) -> list[Sample]:
    """Sample from every prompt and log the speed. Every rank returns all samples, in order."""
    begin = time.perf_counter()
    unfinished = start_samples(subject.tokenizer, prompts, options)
    samples = sample_on_ranks(subject, unfinished, options, on_token)
    seconds = time.perf_counter() - begin
    tokens = sum(len(sample.token_ids) for sample in samples)
    log.info("%d tokens in %.2f s: %.1f tokens/s", tokens, seconds, tokens / seconds)
    return samples


def print_comparison(
    arguments: Arguments, other: Path, prompts: Sequence[str], ranks: Ranks
) -> str:
    """Sample from two checkpoints, each with its own tokenizer, and print the texts in columns.

    Returns the lines of JSON of the first, then of the second.
    """
    subjects = [load_subject(checkpoint, ranks) for checkpoint in (arguments.checkpoint, other)]
    by_model = [_sample_prompts(subject, prompts, arguments.sampling) for subject in subjects]
    if ranks.is_main:
        names = (str(arguments.checkpoint), str(other))
        write_pairs(names, prompts, list(zip(*by_model, strict=True)))
    return "".join(
        _json_lines(prompts, samples, replace(arguments, checkpoint=checkpoint))
        for checkpoint, samples in zip((arguments.checkpoint, other), by_model, strict=True)
    )


def _json_lines(prompts: Sequence[str], samples: Sequence[Sample], arguments: Arguments) -> str:
    origin = {"checkpoint": str(arguments.checkpoint), "seed": arguments.sampling.seed}
    return "".join(sample_line(origin, prompts, sample) for sample in samples)


def print_samples(subject: Subject, prompts: Sequence[str], arguments: Arguments) -> str:
    """Sample from one checkpoint and print the texts; on one rank as soon as they are ready.

    Returns the lines of JSON.
    """
    options = arguments.sampling
    printer = Printer(prompts, options.samples)
    if arguments.json == STANDARD_OUTPUT:
        name = str(arguments.checkpoint)
        printer = JsonPrinter(prompts, options.samples, options.seed, name)
    if subject.ranks.world_size == 1:
        samples = _sample_prompts(subject, prompts, options, printer.on_token)
        return _json_lines(prompts, samples, arguments)
    samples = _sample_prompts(subject, prompts, options)
    for sample in samples:
        if subject.ranks.is_main:
            printer.add(sample)
    return _json_lines(prompts, samples, arguments)


def _is_talk(arguments: Arguments) -> bool:
    """Whether prompts are to be typed: nothing else is asked for, and there is a terminal."""
    others = (arguments.prompt, arguments.prompt_file, arguments.json, arguments.compare)
    streams = (sys.stdin, sys.stdout)
    return not any(others) and all(stream is not None and stream.isatty() for stream in streams)


def _talk(arguments: Arguments, ranks: Ranks) -> None:
    """Continue prompts as they are typed."""
    if ranks.world_size > 1:
        raise ValueError(
            f"prompts cannot be typed to {ranks.world_size} processes; start it without torchrun, "
            "or give --prompt"
        )
    with suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited and found again)
    PromptLoop(load_subject(arguments.checkpoint, ranks), arguments.sampling).run()


def main() -> None:
    """Parse the options, load the checkpoints, sample and print."""
    silence_other_ranks()
    log_to_stderr()
    with user_errors():
        arguments = parse_options(Arguments, prefixed=False)
        ranks = start(arguments.device)
        if on_main(lambda: _is_talk(arguments)):
            _talk(arguments, ranks)
            return stop()
        prompts = gather_prompts(arguments.prompt, arguments.prompt_file)
        lines, alone = "", arguments.json == STANDARD_OUTPUT
        if arguments.compare is None or alone:
            for checkpoint in filter(None, (arguments.checkpoint, arguments.compare)):
                subject = load_subject(checkpoint, ranks)
                lines += print_samples(subject, prompts, replace(arguments, checkpoint=checkpoint))
        else:
            lines = print_comparison(arguments, arguments.compare, prompts, ranks)
        if arguments.json is not None and not alone and ranks.is_main:
            write_text(arguments.json, lines)
    stop()


if __name__ == "__main__":
    main()
