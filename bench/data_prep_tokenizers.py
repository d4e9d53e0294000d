"""The tokenizers that bench/data_prep_speed.py prepares with, beside GPT-2's."""

from pathlib import Path

from bench.data_prep_table import NARROW, WIDE, Method
from data_prep.sources.file_source import file_source
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from data_prep.vocabulary.merges import NO_TEXT, learn_merges
from model.hf_format.tokenizer_files import write_hf_tokenizer
from storage.atomic import read_json, write_json
from storage.byte_pairs import GPT2_PATTERN, PATTERNS, gpt2_byte_pairs, ranks_file


def make_tokenizers(paths: list[Path], folder: Path, methods: tuple[Method, ...]) -> None:
    """The tokenizers of the methods that have one of their own, in folders of their names."""
    if "narrow" in methods or "wide" in methods:
        tokens = _learned([str(path) for path in paths])
        for method, ids in (("narrow", NARROW), ("wide", WIDE)):
            ranks = ranks_file(tokens[: ids - 1])  # and end-of-text
            Tokenizer(method, GPT2_PATTERN, ranks).save(folder / method)
    gpt4 = Tokenizer("gpt4", PATTERNS["gpt4"], gpt2_tokenizer().ranks)
    gpt4.save(folder / "gpt4")
    for method in ("json", "library"):
        if method in methods:
            (folder / method).mkdir()
            write_hf_tokenizer(folder / method, gpt2_byte_pairs(), 1024)
            _add_a_word(folder / method / "tokenizer.json")


def _add_a_word(path: Path) -> None:
    """Add a word that no text has: otherwise the file is taken for GPT-2's own tokenizer."""
    content = read_json(path)
    first, *_ = content["added_tokens"]
    word = {**first, "id": first["id"] + 1, "content": "<|no text has this|>", "special": False}
    write_json(path, {**content, "added_tokens": [first, word]})


def _learned(places: list[str]) -> list[bytes]:
    """The tokens of the larger vocabulary; the smaller one has the first of them."""
    source = file_source(places)
    units = source.plan(1 << 26)
    texts = (document.text for unit in units for document in source.documents(unit))
    tokens = learn_merges(b"".join(text + NO_TEXT for text in texts), WIDE)
    if len(tokens) + 1 < WIDE:
        raise ValueError(
            f"the text gives {len(tokens) + 1:,} ids, fewer than the {WIDE:,} of the method wide; "
            "give more text, or other --methods"
        )
    return tokens
