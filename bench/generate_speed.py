"""Speed of sampling with the KV cache, compared with a full forward pass for every token.

    python bench/generate_speed.py

It samples 512 tokens after one prompt, 1 and 8 samples in parallel, in float32 with random weights
of GPT-2's shape. The baseline recomputes the whole text for each token, with the head at the last
position only. All cached tokens are timed. The passes of the baseline differ only in length, so
`--probes` evenly spaced ones are timed in each round and their mean is used for all (`--probes 512`
times every pass, which takes an hour). The result counts the probes that chose the same token as
the cache. Prints Markdown and writes one JSON file.
"""

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bench.provenance import RESULTS, device_name, provenance
from data_prep.tokenizer import gpt2_tokenizer
from eval.sampling.decoding import PartialSample, sample_batches, split_into_batches, start_samples
from eval.sampling.next_token import GenerateOptions, sample_token, uniform_numbers
from eval.subject import evaluating
from model.gpt import GPT
from model.precision import autocast, choose_dtype
from model.shapes import SHAPES
from parallel.ranks import silence_other_ranks, start, user_errors
from storage.atomic import write_json
from storage.script_options import parse_options

_OUT = RESULTS / "generate_speed.json"
_PROMPT = "Hello, I'm a language model,"

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Time the sampling of the same text with and without the KV cache."""

    shape: str = "gpt2"
    """Model shape by name, with random weights."""
    max_tokens: int = 512
    """New tokens of each sample."""
    samples: tuple[int, ...] = (1, 8)
    """Numbers of samples in parallel, one measurement for each number."""
    rounds: int = 2
    """Rounds of measurements. Each round gives one ratio for each number of samples."""
    probes: int = 12
    """Passes without the cache that are timed in a round, at most max_tokens."""
    threads: int = 2
    """Threads on the CPU."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """float32 or bfloat16."""
    out: Path = _OUT
    """Result file."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"there is no shape {self.shape}; the shapes are {', '.join(SHAPES)}")
        if not 1 <= self.probes <= self.max_tokens:
            raise ValueError(f"probes={self.probes} must be 1 to max_tokens={self.max_tokens}")
        if min(self.samples, default=0) < 1 or self.rounds < 1:
            raise ValueError("samples and rounds must be 1 or more")


def _now(device: torch.device) -> float:
    """The time in seconds, after all work on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _sample_with_cache(model: GPT, options: GenerateOptions) -> tuple[float, list[PartialSample]]:
    """Sample with the project's own code; returns the seconds for all samples, and the samples.

    Raises: ValueError if a sample ends before max_tokens.
    """
    device = model.wte.weight.device
    samples = start_samples(gpt2_tokenizer(), [_PROMPT], options)
    begin = _now(device)
    sample_batches(model, split_into_batches(samples, options), options)
    seconds = _now(device) - begin
    if any(len(sample.to_sample().token_ids) < options.max_tokens for sample in samples):
        raise ValueError(f"a sample ended early; use another seed than {options.seed}")
    return seconds, samples


def _recompute(model: GPT, window: Tensor, uniforms: Tensor, options: GenerateOptions) -> Tensor:
    """The next token of each row, computed from its whole text. Shapes: (B, T), (B,) -> (B,)."""
    dtype = choose_dtype(options.dtype, window.device)
    with autocast(dtype, window.device):
        logits = model.masked_logits(model.hidden(window)[:, -1])
    return sample_token(logits, uniforms, options)


def _time_probes(
    model: GPT, samples: Sequence[PartialSample], steps: Sequence[int], options: GenerateOptions
) -> tuple[list[float], int]:
    """Seconds of each recomputed step, and how many of the tokens equal those of the cache."""
    device = model.wte.weight.device
    ids = torch.tensor([sample.ids for sample in samples], device=device)  # (B, prompt + new)
    rows = [uniform_numbers(options.seed, *sample.index, options.max_tokens) for sample in samples]
    uniforms = torch.stack(rows).to(device)  # (B, new)
    prompt = ids.size(1) - options.max_tokens
    seconds, same = [], 0
    with evaluating(model):
        for step in steps:
            begin = _now(device)
            tokens = _recompute(model, ids[:, : prompt + step], uniforms[:, step], options)
            seconds.append(_now(device) - begin)
            same += int((tokens == ids[:, prompt + step]).sum())
    return seconds, same


def measure(model: GPT, arguments: Arguments) -> list[dict[str, Any]]:
    """Time both methods for each number of samples, round by round; one row for each."""
    rows = []
    spacing = arguments.max_tokens / arguments.probes
    steps = [int((i + 0.5) * spacing) for i in range(arguments.probes)]
    # A first round is not counted, because the first passes load kernels and allocate memory.
    for number in range(-1, arguments.rounds):
        for count in arguments.samples:
            options = GenerateOptions(
                max_tokens=arguments.max_tokens,
                samples=count,
                batch_size=count,
                dtype=arguments.dtype,
            )
            cached, samples = _sample_with_cache(model, options)
            probes, same = _time_probes(model, samples, steps, options)
            if number < 0:
                continue
            recomputed = statistics.mean(probes) * arguments.max_tokens
            rows.append(
                {
                    "samples": count,
                    "cached_seconds": cached,
                    "recomputed_seconds": recomputed,
                    "ratio": recomputed / cached,
                    "probed_steps": steps,
                    "probed_seconds": probes,
                    "tokens_checked": count * len(steps),
                    "tokens_equal": same,
                }
            )
            log.info("round %d: %s", number + 1, _line_of(arguments, rows[-1:]))
    return rows


def _line_of(arguments: Arguments, rows: Sequence[dict[str, Any]]) -> str:
    """The medians of several rounds as a row of the table."""
    samples = rows[0]["samples"]
    speed, again, ratio = (
        statistics.median(samples * arguments.max_tokens / row["cached_seconds"] for row in rows),
        statistics.median(
            samples * arguments.max_tokens / row["recomputed_seconds"] for row in rows
        ),
        statistics.median(row["ratio"] for row in rows),
    )
    equal, checked = (sum(row[key] for row in rows) for key in ("tokens_equal", "tokens_checked"))
    return f"| {samples} | {speed:.1f} | {again:.2f} | {ratio:.1f} | {equal} of {checked} |"


def table_of(arguments: Arguments, rows: Sequence[dict[str, Any]]) -> str:
    """The result as Markdown."""
    lines = [
        "| samples | cached, tokens/s | recomputed, tokens/s | ratio | equal tokens |",
        "| --: | --: | --: | --: | --: |",
    ]
    for samples in arguments.samples:
        lines.append(_line_of(arguments, [row for row in rows if row["samples"] == samples]))
    return "\n".join(lines)


def main() -> None:
    """Build a model, time both methods, report."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start(arguments.device)
        report = provenance(["torch"])
        torch.set_num_threads(arguments.threads)
        model = GPT(SHAPES[arguments.shape])
        model.initialise(1)
        # A logit of 0 is never among the most likely ones, so no sample ends early.
        with torch.no_grad():
            model.wte.weight[gpt2_tokenizer().end_of_text] = 0
        rows = measure(model.to(ranks.device), arguments)
        report |= {
            "device": device_name(ranks.device),
            "threads": torch.get_num_threads(),
            "shape": arguments.shape,
            "dtype": arguments.dtype,
            "max_tokens": arguments.max_tokens,
            "rounds": rows,
        }
        log.info("%s", table_of(arguments, rows))
        write_json(arguments.out, report)


if __name__ == "__main__":
    main()
