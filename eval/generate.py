"""Continues prompts with a model, or with two models to compare them.

    python eval/generate.py --checkpoint runs/gpt2/checkpoints/latest --prompt "Once upon a time"
    python eval/generate.py --checkpoint A --compare B --prompt-file prompts.txt

Texts go to standard output (a single sample token by token), messages to standard error. Runs on
one process or under torchrun, which splits the batches over the ranks and changes no text.
"""

import logging
import sys
import time
from collections.abc import Sequence
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
from eval.sampling.printing import JsonPrinter, Printer, write_pairs
from eval.sampling.prompts import gather_prompts
from eval.subject import Subject, load_subject
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from storage.script_options import parse_options

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Continue prompts with a trained model.

    When a text fills the model's context, the newer half is kept and encoded again. A prompt longer
    than the context is cut in the same way. The same seed gives the same text on any number of
    ranks. Another --batch-size rounds differently, which can change a near-tie between two tokens.
    """

    checkpoint: Path
    """Checkpoint folder, such as runs/gpt2/checkpoints/latest."""
    compare: Path | None = None
    """A second checkpoint folder; its texts are printed next to those of the first."""
    prompt: tuple[str, ...] = ()
    """Prompts to continue. An empty prompt (the default) starts a new document."""
    prompt_file: Path | None = None
    """File with more prompts: one per line, or .jsonl with the key "prompt"; -: standard input."""
    json: bool = False
    """Print one JSON object per line for each sample, instead of the text."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses CUDA if it is available."""
    sampling: GenerateOptions = GenerateOptions()
    """How tokens are sampled."""


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
) -> None:
    """Sample from two checkpoints, each with its own tokenizer, and print the texts in columns."""
    subjects = [load_subject(checkpoint, ranks) for checkpoint in (arguments.checkpoint, other)]
    by_model = [_sample_prompts(subject, prompts, arguments.sampling) for subject in subjects]
    if ranks.is_main:
        names = (str(arguments.checkpoint), str(other))
        write_pairs(names, prompts, list(zip(*by_model, strict=True)))


def _log_to_stderr() -> None:
    """Send log messages to standard error, because standard output is for the texts."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def print_samples(subject: Subject, prompts: Sequence[str], arguments: Arguments) -> None:
    """Sample from one checkpoint and print the texts; on one rank as soon as they are ready."""
    options = arguments.sampling
    printer = Printer(prompts, options.samples)
    if arguments.json:
        name = str(arguments.checkpoint)
        printer = JsonPrinter(prompts, options.samples, options.seed, name)
    if subject.ranks.world_size == 1:
        _sample_prompts(subject, prompts, options, printer.on_token)
        return
    for sample in _sample_prompts(subject, prompts, options):
        if subject.ranks.is_main:
            printer.add(sample)


def main() -> None:
    """Parse the options, load the checkpoints, sample and print."""
    silence_other_ranks()
    _log_to_stderr()
    with user_errors():
        arguments = parse_options(Arguments, prefixed=False)
        ranks = start(arguments.device)
        prompts = gather_prompts(arguments.prompt, arguments.prompt_file)
        if arguments.compare is None or arguments.json:
            for checkpoint in filter(None, (arguments.checkpoint, arguments.compare)):
                subject = load_subject(checkpoint, ranks)
                print_samples(subject, prompts, replace(arguments, checkpoint=checkpoint))
        else:
            print_comparison(arguments, arguments.compare, prompts, ranks)
    stop()


if __name__ == "__main__":
    main()
