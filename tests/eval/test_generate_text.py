"""What becomes of tokens on the way to the reader, and of prompts on the way in."""

import io
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tokenizer import gpt2_tokenizer
from eval.sampling.decoding import Sample, sample_batches, start_samples
from eval.sampling.next_token import GenerateOptions
from eval.sampling.printing import (
    JsonPrinter,
    Printer,
    cells,
    side_by_side,
    wrapped,
    write,
    write_pairs,
)
from eval.sampling.prompts import gather_prompts, read_prompts
from eval.sampling.text_stream import TextStream
from tests.eval_subjects import tiny_model

TOKENIZER = gpt2_tokenizer()


def streamed(ids, stops=()):
    """The pieces in which a text appears, and its stream."""
    stream = TextStream(TOKENIZER, stops)
    pieces = []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


@settings(max_examples=60)
@given(st.lists(st.integers(0, 50255), max_size=30))
def test_any_tokens_in_pieces_are_their_decoded_text(ids):
    pieces, stream = streamed(ids)
    assert "".join(pieces) == stream.text == TOKENIZER.decode(ids)


@settings(max_examples=60)
@given(st.text(max_size=20))
def test_no_character_is_ever_shown_torn(text):
    pieces, stream = streamed(TOKENIZER.encode(text))
    assert stream.text == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(max_examples=100)
@given(st.text("ab€", max_size=30), st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_before_its_first_stop_string_and_nothing_of_it_is_shown(text, stops):
    ids = [token for c in text for token in TOKENIZER.encode(c)]
    pieces, stream = streamed(ids, stops)
    found = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stops)]
    wanted = text
    if found:
        head = text[: found[0]]
        wanted = min((head[: head.find(s)] for s in stops if s in head), key=len)
    assert "".join(pieces) == stream.text == wanted
    assert stream.stopped == bool(found)


def test_text_that_cannot_begin_a_stop_string_is_shown_at_once():
    stream = TextStream(TOKENIZER, ["###"])
    assert stream.add(*TOKENIZER.encode(" list")) == " list"
    assert stream.add(*TOKENIZER.encode("#")) == ""
    assert stream.add(*TOKENIZER.encode("a")) == "#a"


# --- prompts ----------------------------------------------------------------------------------


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


# --- output -----------------------------------------------------------------------------------


def sample(prompt, number, text):
    return Sample(prompt, number, text, (1, 2), "length", -2.5)


def test_samples_are_written_in_order_as_soon_as_those_before_them_are(capsys):
    printer = Printer(["A", "B"], 2)
    printer.add(sample(0, 1, " second"))
    assert capsys.readouterr().out == ""
    printer.add(sample(0, 0, " first"))
    assert capsys.readouterr().out == "A first\n---\nA second\n---\n"
    printer.add(sample(1, 0, " third"))
    printer.add(sample(1, 1, " last"))
    assert capsys.readouterr().out == "B third\n---\nB last\n"


def test_a_lone_sample_is_written_as_it_grows(monkeypatch):
    pieces = []
    monkeypatch.setattr("eval.sampling.printing.write", pieces.append)
    options = GenerateOptions(max_tokens=12)
    samples = start_samples(TOKENIZER, ["A list"], options)
    sample_batches(tiny_model(), [samples], options, Printer(["A list"], 1).on_token)
    assert len(pieces) == 12
    assert pieces[0].startswith("A list")
    assert "".join(pieces) == "A list" + samples[0].to_sample().text + "\n"


def test_json_is_one_object_a_sample(capsys):
    printer = JsonPrinter(["Ä"], 2, 7, "runs/a")
    printer.add(sample(0, 0, "é\n"))
    printer.add(sample(0, 1, ""))
    first, _ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == {
        "checkpoint": "runs/a", "seed": 7, "prompt": "Ä", "prompt_index": 0, "sample_index": 0,
        "text": "é\n", "token_ids": [1, 2], "finish_reason": "length", "logprob_sum": -2.5,
    }  # fmt: skip


def test_two_texts_stand_side_by_side(capsys):
    pairs = [(sample(0, 0, "one two three"), sample(0, 0, "eins\nzwei"))]
    write_pairs(("runs/a", "runs/b"), ["P"], pairs, width=17)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["runs/a  │ runs/b", "---", "P", ""]
    assert lines[4:] == ["one two │ eins", "three   │ zwei"]


@settings(max_examples=60)
@given(st.text("ab 日é\u0301\x1b\n", max_size=60), st.integers(2, 12))
def test_wrapped_lines_fit_and_lose_nothing_but_spaces(text, width):
    lines = list(wrapped(text, width))
    assert all(cells(line) <= width for line in lines)
    assert "\x1b" not in "".join(lines)
    kept = "".join(lines).replace(" ", "")
    assert kept == text.replace("\x1b", "\ufffd").replace("\n", "").replace(" ", "")
    assert len(set(map(cells, (x.split("│")[0] for x in side_by_side(text, "b", 20))))) <= 2


def test_a_terminal_that_lacks_a_character_gets_its_number(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write("aé")
    assert raw.getvalue() == b"a\\xe9"
