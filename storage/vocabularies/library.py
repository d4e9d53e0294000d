"""Hugging Face's `tokenizers`: the library that defines the ids of a tokenizer.json."""

import re
from typing import Any

import numpy as np

LIBRARY = "tokenizers"
_UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}


class LibraryTokenizer:
    """One tokenizer.json in the library. Special tokens that are in a text are ordinary text."""

    def __init__(self, content: bytes) -> None:
        """Raises: ValueError if the library cannot read it."""
        try:
            import tokenizers  # takes a moment, and few need it

            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(content)
        except ImportError as error:
            raise ValueError(
                f"a tokenizer.json needs Hugging Face's {LIBRARY}; `pip install {LIBRARY}`"
            ) from error
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the library raises Exception, a panic is a BaseException
            raise ValueError(f"{LIBRARY} cannot read it ({error!s:.200}); copy it again") from error
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, uint32. Raises: ValueError if the library fails."""
        # Not `encode_batch`: it starts threads, and a process that has them must not fork.
        try:
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            raise ValueError(f"{LIBRARY} fails on it ({error!s:.200})") from error

    def id_of(self, token: str) -> int | None:
        """The id of a token; added ones are numbered in their order, whatever the file says."""
        return self._tokenizer.token_to_id(token)

    def normalised(self, text: str) -> str:
        """The text as it is encoded, such as with composed characters (NFC)."""
        step = self._tokenizer.normalizer
        return text if step is None else step.normalize_str(text)

    def not_merged(self, tokens: list[str]) -> list[str]:
        """Those of some tokens that merges of their own bytes do not give."""
        model = self._tokenizer.model
        ignored, model.ignore_merges = model.ignore_merges, False
        try:
            return [token for token in tokens if len(model.tokenize(token)) > 1]
        finally:
            model.ignore_merges = ignored


def characters_of_class(kind: str, text: str) -> set[str]:
    """The characters of a text that the library's regular expressions take for a class."""
    import tokenizers

    step: Any = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(f"(?:{kind})+"), "removed", invert=True
    )
    return set().union(*(piece for piece, _ in step.pre_tokenize_str(text)))


def has_whole_words(content: bytes) -> bool:
    """Whether a tokenizer.json looks pieces up whole, so that its merges need not give them."""
    return re.search(rb'"ignore_merges"\s*:\s*true', content) is not None


def steps_of(step: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be a sequence of sequences."""
    if not step:
        return []
    if step["type"] == "Sequence":
        return [found for part in step[inside] for found in steps_of(part, inside)]
    return [step]


def is_unicode_form(step: dict[str, Any]) -> bool:
    """Whether a step of a normalizer chooses only between spellings of the same character."""
    return step["type"] in _UNICODE_FORMS
