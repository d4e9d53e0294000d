"""The methods of bench/data_prep_speed.py, and its table."""

import statistics
from collections.abc import Iterator
from typing import Any, Literal

NARROW, WIDE = 65_536, 70_000  # ids: the most that two bytes hold, and more
Method = Literal[
    "shipped", "pool", "tiktoken", "auto", "gpt4", "narrow", "wide", "json", "library", "old"
]
METHODS: dict[Method, str] = {
    "shipped": "pool like build-nanogpt's, on half of the cores as published",
    "pool": "the same pool on all cores",
    "tiktoken": "ours, tiktoken alone",
    "auto": "ours, gigatoken checked by tiktoken",
    "gpt4": "ours, GPT-2's ranks with GPT-4's pattern",
    "narrow": f"ours, {NARROW:,} ids learned from the text, uint16",
    "wide": f"ours, {WIDE:,} ids learned from the text, uint32",
    "json": "ours, a tokenizer.json with GPT-2's ids, checked by Hugging Face's tokenizers",
    "library": "the same tokenizer.json, tokenizers alone",
    "old": "an older version of ours",
}

Runs = dict[Method, list[dict[str, Any]]]


def table(runs: dict[str, Runs]) -> str:
    """Medians as Markdown, with ratios to the first method.

    On a machine with other work, the ratios of CPU time are the reliable ones. That of the whole
    is the median of its turns, with the smallest and the largest.
    """
    methods = list(runs["whole"])
    figures = {size: next(iter(_with_bytes(found))) for size, found in runs.items()}
    text_mb = {size: run["text_bytes"] / 1e6 for size, run in figures.items()}
    rest_mb = text_mb["whole"] - text_mb["third"]

    def median(method: Method, key: str, size: str = "whole") -> float:
        return statistics.median(run[key] for run in runs[size][method])

    def rest(method: Method, key: str) -> float:
        return median(method, key) - median(method, key, "third")

    lines = [
        f"{text_mb['whole']:.0f} MB of text; the rest is the last {rest_mb:.0f} MB of it:",
        "",
        "| | seconds | tokens/s | first / it | CPU seconds | first / it (its turns) "
        "| peak of all processes, MB | seconds of the rest | MB/s | first / it | CPU: first / it |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = methods[0]
    for method in methods:
        seconds, cpu = median(method, "seconds"), median(method, "cpu_seconds")
        cells = [
            METHODS[method],
            f"{seconds:.2f}",
            f"{median(method, 'tokens') / seconds:,.0f}",
            f"{median(first, 'seconds') / seconds:.2f}",
            f"{cpu:.1f}",
            _turns(runs["whole"][first], runs["whole"][method]),
            f"{median(method, 'peak_mb'):,.0f}",
            f"{rest(method, 'seconds'):.2f}",
            _ratio(rest_mb, rest(method, "seconds"), digits=1),
            _ratio(rest(first, "seconds"), rest(method, "seconds")),
            _ratio(rest(first, "cpu_seconds"), rest(method, "cpu_seconds")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_bytes(found: Runs) -> Iterator[dict[str, Any]]:
    """The runs that say how much text they had, as the pool's do not."""
    return (run for method in found for run in found[method] if "text_bytes" in run)


def _turns(first: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    pairs = zip(first, other, strict=True)
    ratios = [a["cpu_seconds"] / b["cpu_seconds"] for a, b in pairs]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def _ratio(a: float, b: float, digits: int = 2) -> str:
    # With little text, the noise of the start-up can be larger than the time of the rest.
    return f"{a / b:.{digits}f}" if a > 0 and b > 0 else "-"
