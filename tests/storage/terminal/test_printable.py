"""Control characters never reach a terminal, and JSON stays exact."""

import json

from hypothesis import given
from hypothesis import strategies as st

from storage.terminal.printable import printable, printable_json

CONTROLS = {chr(code) for code in (*range(32), *range(0x7F, 0xA0))} - {"\t", "\n"}


@given(st.text())
def test_a_text_without_control_characters_is_unchanged(text):
    plain = "".join(character for character in text if character not in CONTROLS)
    assert printable(plain) == plain


@given(st.text(st.sampled_from([*CONTROLS, "a", "é", "\n"])))
def test_no_control_character_is_left_in_text_or_json(text):
    assert not CONTROLS & set(printable(text))
    line = printable_json({"text": text})
    assert not CONTROLS & set(line)
    assert "\n" not in line
    assert json.loads(line) == {"text": text}


def test_an_escape_sequence_is_shown_as_characters():
    assert printable("\x1b]52;c;aGk=\x07 \x9b31m\r\n") == "\\x1b]52;c;aGk=\\x07 \\x9b31m\\x0d\n"
