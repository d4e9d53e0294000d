"""Texts of other people on a terminal: control characters are escaped, so none acts on it.

A prompt, a model or a document may hold escape sequences, which change colours, titles or the
clipboard of the terminal that shows them. JSON stays exact: it has escapes of its own.
"""

import json
import re
from typing import Any

# C0 and C1 controls and DEL, except tab and line feed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""The text with `\x1b` and the like in place of control characters; lines and tabs stay."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def printable_json(value: Any) -> str:
    """One line of JSON without a control character in it; it reads back as `value`."""
    line = json.dumps(value, ensure_ascii=False)  # which escapes the first 32, but not the others
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
