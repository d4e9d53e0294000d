"""Whether a tokenizer of others has the ids of its library, and how fast each encoder is.

    python bench/tokenizer_agreement.py qwen/tokenizer.json cl100k_base.tiktoken --text prose.jsonl

In: what `--tokenizer` of data_prep/text.py takes, and any text that it reads. The library of a
tokenizer.json is Hugging Face's `tokenizers`, that of a file of ranks tiktoken. Every encoder of
ours that may be used encodes the same documents, and all ids are compared with those that the
library gives for the file as it is, special tokens in a text being ordinary text. Rates are CPU
time of one thread, by turns. Prints Markdown and writes one JSON file.
"""

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken
import tokenizers
import tyro
from tiktoken.load import load_tiktoken_bpe

from bench.provenance import RESULTS, provenance
from data_prep.preparation.encoder import fast_encoder
from data_prep.sources.file_source import file_source
from data_prep.tokenizer import Tokenizer, named_tokenizer
from storage.atomic import write_json
from storage.option_values import check_at_least
from storage.script_options import parse_options
from storage.user_errors import exit_on_user_error

_UNIT_BYTES = 1 << 26
# Scripts, composed and decomposed letters, signs, controls, numbers, spaces, special tokens.
_TEXTS = (
    "It's we'll THEY'VE 'S \u017f'\u017f \u212a'RE e\u0301 A\u030a \u1100\u1161 \u0958 \ufb01",
    "naïve — “quotes” 日本語テキスト مرحبا ไทย हिन्दी 한국어 עברית \U0001f9dc\u200d\u2642",
    "<|endoftext|><|im_start|>user<think>no</think><|begin_of_text|></s><|end_of_text|>",
    "def f(x):\n\treturn {'a': x**2}  # 3.14159\r\n" + 40 * " " + "z\n\n\n\t \r\n",
    "12345678 \xbd\xb2\xb3 \u2177 \u0661\u0662 1 22 333 4444 \x00\x1c\x7f\x85\u2028\ufeff\ufffd",
    "a" * 3000 + " " * 3000 + "\n" * 300,
    "".join(map(chr, range(1, 0x3000))),
    "".join(chr(code) + " a" for code in range(0x10000, 0x10400)),
)

_Encode = Callable[[str], list[int]]
_Takes = Callable[[str], bool]
log = logging.getLogger("bench.tokenizer_agreement")


@dataclass(frozen=True)
class Arguments:
    """Compare tokenizers with their libraries."""

    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Files and folders of tokenizers, as `--tokenizer` takes them."""
    text: tuple[str, ...] = ()
    """Files, folders or globs of text, beside the texts of all scripts that are here."""
    text_bytes: int = 2_000_000
    """Bytes of that text to encode."""
    repeats: int = 3
    """Turns of each encoder; the table has the medians of their rates."""
    out: Path = RESULTS / "tokenizer_agreement.json"
    """Result file."""

    def __post_init__(self) -> None:
        check_at_least("repeats", self.repeats, 1)
        check_at_least("text_bytes", self.text_bytes, 1)


def documents(places: tuple[str, ...], most: int) -> list[str]:
    """The first documents of some files, up to a number of bytes."""
    found: list[str] = []
    source = file_source(places)
    for unit in source.plan(_UNIT_BYTES):
        for document in source.documents(unit):
            found.append(document.text[:most].decode(errors="ignore"))
            most -= len(document.text)
            if most <= 0:
                return found
    return found


def library_of(path: Path, tokenizer: Tokenizer) -> tuple[str, _Encode]:
    """The library that defines the ids of a file, used as its own users do."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.suffix == ".json":
        theirs = tokenizers.Tokenizer.from_file(str(file))
        theirs.encode_special_tokens = True
        return "tokenizers", lambda text: theirs.encode(text, add_special_tokens=False).ids
    ranks = load_tiktoken_bpe(str(file))
    encoding = tiktoken.Encoding(
        "theirs", pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens={}
    )
    return "tiktoken", encoding.encode_ordinary


def compare(path: Path, texts: list[str], repeats: int) -> dict[str, Any]:
    """Ids of ours against the library's, and the rate of each encoder."""
    tokenizer = named_tokenizer(path)
    name, library = library_of(path, tokenizer)
    ways: dict[str, tuple[_Encode, _Takes]] = {
        f"{name} itself": (library, _everything),
        "ours, the reference": (tokenizer.encode, _everything),
    }
    if (fast := fast_encoder(tokenizer)) is not None:
        ways[f"ours, {fast.name}"] = (
            lambda text: fast.encode(tokenizer.normalised(text.encode())).tolist(),
            lambda text: not (fast.may_differ(text.encode()) or "\0" in text or "<|" in text),
        )
    every = (*_TEXTS, *texts)
    expected = [library(text) for text in every]
    compared, differing = {}, {}
    for way, (encode, takes) in ways.items():
        taken = [number for number, text in enumerate(every) if takes(text)]
        compared[way] = len(taken)
        differing[way] = sum(encode(every[number]) != expected[number] for number in taken)
    size = sum(len(text.encode()) for text in texts)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, (encode, _) in ways.items():
            start = time.process_time()
            for text in texts:
                encode(text)
            rates[way].append(size / 1e6 / max(time.process_time() - start, 1e-9))
    return {
        "tokenizer": path.stem if path.suffix == ".tiktoken" else tokenizer.name,
        "ids": tokenizer.n_vocab,
        "texts": len(every),
        "compared": compared,
        "differing": differing,
        "tokens": sum(map(len, expected[len(_TEXTS) :])),
        "text_bytes": size,
        "mb_per_cpu_second": rates,
    }


def _everything(text: str) -> bool:
    return True


def table_of(results: list[dict[str, Any]]) -> str:
    """One line for each encoder of each tokenizer."""
    lines = [
        "| tokenizer | ids | encoder | texts compared | with other ids | MB a CPU second (range) "
        "| bytes per token |",
        "| --- | --: | --- | --: | --: | --: | --: |",
    ]
    for found in results:
        for way, rates in found["mb_per_cpu_second"].items():
            rate = f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
            cells = [
                *(found["tokenizer"], f"{found['ids']:,}", way, f"{found['compared'][way]}"),
                *(f"{found['differing'][way]}", rate),
                f"{found['text_bytes'] / max(1, found['tokens']):.3f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Compare each tokenizer, print the table, write the JSON file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with exit_on_user_error(ValueError, OSError):
        arguments = parse_options(Arguments, description=__doc__)
        if not arguments.paths or not arguments.text:
            raise ValueError("name tokenizers, and text with --text FILE")
        found: dict[str, Any] = provenance(("tokenizers", "tiktoken", "gigatoken"))
        texts = documents(arguments.text, arguments.text_bytes)
        results = [compare(path, texts, arguments.repeats) for path in arguments.paths]
        write_json(arguments.out, found | {"repeats": arguments.repeats, "results": results})
        log.info("%s", table_of(results))


if __name__ == "__main__":
    main()
