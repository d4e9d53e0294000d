"""Text from a model, or from two side by side.

    python eval/generate.py --checkpoint runs/gpt2/checkpoints/latest --prompt "Once upon a time"
    python eval/generate.py --checkpoint A --compare B --prompt-file prompts.txt

Texts go to standard output, a single sample as it is drawn; messages to standard error. Alone or
under torchrun, which deals the batches to its ranks and changes no text.
"""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

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

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Continue prompts with a trained model.

    When a text fills the model's context, its newer half is kept and encoded again, and it goes
    on from there; a prompt longer than the context is cut to its end in the same way. The same
    seed gives the same text on any number of ranks; another batch size may move a float tie.
    """

    checkpoint: Path
    """Checkpoint folder, such as runs/gpt2/checkpoints/latest."""
    compare: Path | None = None
    """Another checkpoint folder, whose texts are put beside the first one's."""
    prompt: tuple[str, ...] = ()
    """Beginnings to continue, one or more; an empty one, the default, begins a new document."""
    prompt_file: Path | None = None
    """File of more prompts, one a line, or .jsonl with a "prompt" each; - is standard input."""
    json: bool = False
    """Write one JSON object a sample, one a line, instead of the texts."""
    device: str = "auto"
    """auto, cpu or cuda; auto takes CUDA where there is one."""
    sampling: GenerateOptions = GenerateOptions()
    """How text is drawn."""


def draw(
    subject: Subject,
    prompts: Sequence[str],
    options: GenerateOptions,
    watch: OnToken = ignore_token,
) -> list[Sample]:
    """Every sample of every prompt, in order, on every rank; says how fast."""
    begin = time.perf_counter()
    drafts = start_samples(subject.tokenizer, prompts, options)
    samples = sample_on_ranks(subject, drafts, options, watch)
    seconds = time.perf_counter() - begin
    tokens = sum(len(sample.token_ids) for sample in samples)
    log.info("%d tokens in %.2f s: %.1f tokens/s", tokens, seconds, tokens / seconds)
    return samples


def compare(arguments: Arguments, other: Path, prompts: Sequence[str], ranks: Ranks) -> None:
    """Draw with two checkpoints, each with its own tokenizer, and write their texts in columns."""
    subjects = [load_subject(checkpoint, ranks) for checkpoint in (arguments.checkpoint, other)]
    drawn = [draw(subject, prompts, arguments.sampling) for subject in subjects]
    if ranks.is_main:
        names = (str(arguments.checkpoint), str(other))
        write_pairs(names, prompts, list(zip(*drawn, strict=True)))


def messages_to_standard_error() -> None:
    """Leave standard output to the texts."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def write_texts(subject: Subject, prompts: Sequence[str], arguments: Arguments) -> None:
    """Draw and write the samples of one checkpoint, as they come where there is one rank."""
    options = arguments.sampling
    printer = Printer(prompts, options.samples)
    if arguments.json:
        name = str(arguments.checkpoint)
        printer = JsonPrinter(prompts, options.samples, options.seed, name)
    if subject.ranks.world_size == 1:
        draw(subject, prompts, options, printer.watch)
        return
    for sample in draw(subject, prompts, options):
        if subject.ranks.is_main:
            printer.add(sample)


def main() -> None:
    """Load, draw, write."""
    silence_other_ranks()
    messages_to_standard_error()
    with user_errors():
        arguments = tyro.cli(Arguments, config=(tyro.conf.OmitArgPrefixes,))
        ranks = start(arguments.device)
        prompts = gather_prompts(arguments.prompt, arguments.prompt_file, ranks)
        if arguments.compare is None or arguments.json:
            for checkpoint in filter(None, (arguments.checkpoint, arguments.compare)):
                subject = load_subject(checkpoint, ranks)
                write_texts(subject, prompts, replace(arguments, checkpoint=checkpoint))
        else:
            compare(arguments, arguments.compare, prompts, ranks)
    stop()


if __name__ == "__main__":
    main()
