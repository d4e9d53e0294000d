"""Prompts from arguments, files and standard input."""

import io
import sys

import pytest

from eval.sampling.prompts import gather_prompts, read_prompts


def test_prompts_come_from_arguments_file_and_standard_input(tmp_path, monkeypatch):
    file, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    file.write_bytes("\ufeff one \r\n\nzwei ä\n".encode())
    lines.write_text('{"prompt": "a\\nb", "id": 3}\n\n{"prompt": ""}\n')
    assert gather_prompts(["first", "a\udcff"], file) == ["first", "a�", " one ", "zwei ä"]
    assert read_prompts(lines) == ["a\nb", ""]
    assert gather_prompts([], None) == [""]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\nb".encode())))
    assert read_prompts(type(file)("-")) == ["é", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no prompt"),
        ("a.txt", b"\n\r\n", "holds no prompt"),
        ("a.txt", "é".encode("latin-1"), "is not UTF-8 .*save the prompts as UTF-8"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n', 'line 1 has no text under "prompt"'),
        ("a.jsonl", b'["prompt"]\n', 'line 1 has no text under "prompt"'),
        ("missing.txt", None, "cannot be read .No such file"),
    ],
)
def test_a_bad_prompt_file_is_refused_with_the_cure(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)
