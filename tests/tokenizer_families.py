"""Small tokenizers of well-known families, made with Hugging Face's library."""

import json
from functools import cache

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from storage.byte_pairs import PATTERNS
from tests.launching import REPO

NAUGHTY = [
    "",
    " ",
    "Hello  world   \n\n\n  x \r\n\r\n\ty",
    "It's we'll THEY'VE 'S 'tis \u017f'\u017f \u212a'RE",
    "naïve café — “quotes” ☃ 日本語テキスト مرحبا ไทย हिन्दी 한국어 ελληνικά",
    "e\u0301 \u0041\u030a \u1100\u1161\u11a8 \u0958 \ufb01 \u2126 \ufa0e",
    "🦜👩‍👩‍👧‍👦🇮🇸\u200b\u00a0\u3000x\ufeff\ufffd\U000e0067",
    "<|endoftext|><|im_start|>user<think>no</think><|begin_of_text|></s><|end_of_text|>",
    "def f(x):\n\treturn {'a': x**2}  # 3.14159 0x1F\r\n" + 40 * " " + "z",
    "12345678 ½²³ ⅷ ١٢٣ 1 22 333 4444",
    "\x00\x01\x1c\x7f\x85\u2028 the the \x00",
    "the then fox quick brown " * 20 + "a" * 300 + " " * 300,
    "".join(map(chr, range(1, 0x600))),
    "".join(chr(code) + " a" for code in range(0x2000, 0x2100)),
]


@cache
def _learned(kind: str) -> str:
    """The tokenizer.json of 700 ids, before its special tokens and words."""
    splits = {
        "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "llama3": _split(PATTERNS["gpt4"]),
        "qwen2": _split(PATTERNS["qwen2"]),
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    }
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splits[kind]
    first = ["<|endoftext|>", "<|im_start|>"] if kind == "smollm" else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    text = (REPO / "README.md").read_text(encoding="utf-8")[:20_000]
    tokenizer.train_from_iterator([text, "日本語 café naïve हिन्दी " * 30, "  " * 500], trainer)
    content = json.loads(tokenizer.to_str())
    if kind == "llama3":
        _with_all_merges(content["model"])
    return json.dumps(content)


def _split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


FAMILIES = ("gpt2", "llama3", "qwen2", "smollm")


def family(kind: str, folder):
    """Write the tokenizer.json of a family; returns its path."""
    tokenizer = tokenizers.Tokenizer.from_str(_learned(kind))
    if kind == "llama3":
        tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
        start = tokenizer.token_to_id("<|begin_of_text|>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", start)]
        )
    elif kind != "smollm":
        tokenizer.add_special_tokens(["<|endoftext|>"])
    if kind == "qwen2":
        tokenizer.add_special_tokens(["<|im_start|>"])
        tokenizer.add_tokens(["<think>", "</think>"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    return path


def _with_all_merges(model):
    """As Llama 3's: every pair that joins to a token is a merge, and a whole word is looked up."""
    ids = model["vocab"]
    # A token that merges do not give, as Llama 3 has some hundred.
    ids["ZqxZqx"] = max(ids.values()) + 1
    model["merges"] = [
        [text[:at], text[at:]]
        for text in sorted(ids, key=ids.__getitem__)
        for at in range(1, len(text))
        if text[:at] in ids and text[at:] in ids
    ]
    model["ignore_merges"] = True


def library_ids(path, text: str) -> list[int]:
    """What Hugging Face's library gives, special tokens in the text being ordinary text."""
    library = tokenizers.Tokenizer.from_file(str(path))
    library.encode_special_tokens = True
    return library.encode(text, add_special_tokens=False).ids
