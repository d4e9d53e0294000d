"""Decodes text token by token; holds back half a character and half a stop string."""

import codecs
from collections.abc import Sequence

from data_prep.tokenizer import Tokenizer


class TextStream:
    """The text of tokens that are added one at a time, cut at the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        # A token may end inside a character; the decoder keeps such bytes for the next token.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""  # text that may be the beginning of a stop string

    def add(self, token: int) -> str:
        """Add a token. Returns the new text that no later token can change."""
        return self._append(self._decoder.decode(self._tokenizer.to_bytes([token])))

    def finish(self) -> str:
        """End the text. Returns what was held back; bytes that are not UTF-8 become U+FFFD."""
        new = self._append(self._decoder.decode(b"", final=True))
        pending, self._pending = self._pending, ""
        self.text += pending
        return new + pending

    def _append(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._pending + new
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        self.stopped = bool(places)
        keep = 0 if self.stopped else self._partial_stop_length(text)
        certain = text[: min(places)] if self.stopped else text[: len(text) - keep]
        self._pending = text[len(text) - keep :]
        self.text += certain
        return certain

    def _partial_stop_length(self, text: str) -> int:
        """Number of characters at the end of `text` that may be the beginning of a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
