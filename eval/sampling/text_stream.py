"""Text that grows token by token, never shown by half a character or half a stop string."""

import codecs
from collections.abc import Sequence

from data_prep.tokenizer import Tokenizer


class TextStream:
    """The text of tokens added one at a time, cut at the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        # A token may end inside a character: the decoder keeps those bytes back.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a stop string

    def add(self, token: int) -> str:
        """Add a token; gives the text that is certain now and was not before."""
        return self._settle(self._decoder.decode(self._tokenizer.to_bytes([token])))

    def finish(self) -> str:
        """No token follows; gives what was held back. Bytes that are no UTF-8 become U+FFFD."""
        new = self._settle(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        self.text += held
        return new + held

    def _settle(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        self.stopped = bool(places)
        keep = 0 if self.stopped else self._beginning_of_a_stop(text)
        certain = text[: min(places)] if self.stopped else text[: len(text) - keep]
        self._held = text[len(text) - keep :]
        self.text += certain
        return certain

    def _beginning_of_a_stop(self, text: str) -> int:
        """Characters at the end of `text` with which a stop string may have begun."""
        longest = max(map(len, self._stops), default=1) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
