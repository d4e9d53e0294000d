"""Separators: as typed in a shell, with either kind of newline, anywhere in a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sources import splitting
from data_prep.sources.byte_streams import Content
from data_prep.sources.splitting import Separator, split_content, typed_separator
from tests.data_prep.stories import prepared, texts_of


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(r"\n\n", "\n\n"), ("\n", "\n"), (r"\t|\r", "\t|\r"), (r"\\n", r"\n"), ("<|x|>", "<|x|>")],
)
def test_a_separator_is_read_as_typed(typed, meant):
    assert typed_separator(typed) == meant


@pytest.mark.parametrize("typed", [r"\d", r"\x0a", "a\\", "\\\n"])
def test_a_backslash_before_anything_else_is_an_error(typed):
    with pytest.raises(ValueError, match=r"has no meaning; known are \\n, \\t, \\r, and \\\\ for"):
        typed_separator(typed)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n", "\n---\n"])
def test_a_separator_matches_newlines_of_windows_too(tmp_path, newline, separator):
    typed = separator.replace("\r", "")
    text = f"one\nline{typed}two{typed}three".replace("\n", newline)
    (tmp_path / "a.txt").write_bytes(text.encode())
    data = prepared(tmp_path, "a.txt", separator=separator)
    assert texts_of(data) == [f"one{newline}line", "two", "three"]


@given(text=st.text("ab\r\n", max_size=60), chunk=st.integers(1, 9))
def test_the_size_of_what_is_read_at_a_time_changes_nothing(tmp_path_factory, text, chunk):
    path = tmp_path_factory.mktemp("split") / "a.txt"
    path.write_bytes(text.encode())
    separator = Separator(b"\n\n", any_newline=True)
    whole = list(split_content(Content(path), separator))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "_CHUNK_BYTES", chunk)
        assert list(split_content(Content(path), separator)) == whole
    assert sum(len(part) + closed for part, closed in whole) == len(text)
