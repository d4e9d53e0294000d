"""Samples on standard output: in order, token by token, as JSON, in two columns."""

import io
import json
import sys

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
from tests.eval_subjects import tiny_model

TOKENIZER = gpt2_tokenizer()


def sample(prompt, number, text):
    return Sample(prompt, number, text, (1, 2), "length", -2.5)


def test_samples_are_written_in_order_as_soon_as_possible(capsys):
    printer = Printer(["A", "B"], 2)
    printer.add(sample(0, 1, " second"))
    assert capsys.readouterr().out == ""
    printer.add(sample(0, 0, " first"))
    assert capsys.readouterr().out == "A first\n---\nA second\n---\n"
    printer.add(sample(1, 0, " third"))
    printer.add(sample(1, 1, " last"))
    assert capsys.readouterr().out == "B third\n---\nB last\n"


def test_control_characters_of_prompt_and_text_do_not_reach_the_terminal(capsys):
    prompts, hostile = ["\x1b[31mA"], " \x1b]0;title\x07\x9b\x7f"
    Printer(prompts, 1, streams=False).add(sample(0, 0, hostile))
    printed = capsys.readouterr().out
    assert printed == "\\x1b[31mA \\x1b]0;title\\x07\\x9b\\x7f\n"
    write_pairs(("a\x1b", "b"), prompts, [(sample(0, 0, hostile), sample(0, 0, "x"))], 40)
    JsonPrinter(prompts, 1, 7, "c").add(sample(0, 0, hostile))
    printed = capsys.readouterr().out
    assert not any(character in printed for character in "\x1b\x07\x9b\x7f")
    line = json.loads(printed.splitlines()[-1])
    assert (line["prompt"], line["text"]) == (prompts[0], hostile)


def test_a_single_sample_is_written_token_by_token(monkeypatch):
    pieces = []
    monkeypatch.setattr("eval.sampling.printing.write", pieces.append)
    options = GenerateOptions(max_tokens=12)
    samples = start_samples(TOKENIZER, ["A list"], options)
    sample_batches(tiny_model(), [samples], options, Printer(["A list"], 1).on_token)
    assert len(pieces) == 12
    assert pieces[0].startswith("A list")
    assert "".join(pieces) == "A list" + samples[0].to_sample().text + "\n"


def test_json_is_one_object_per_sample(capsys):
    printer = JsonPrinter(["Ä"], 2, 7, "runs/a")
    printer.add(sample(0, 0, "é\n"))
    printer.add(sample(0, 1, ""))
    first, _ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == {
        "checkpoint": "runs/a", "seed": 7, "prompt": "Ä", "prompt_index": 0, "sample_index": 0,
        "text": "é\n", "token_ids": [1, 2], "finish_reason": "length", "logprob_sum": -2.5,
    }  # fmt: skip


def test_two_texts_are_written_in_two_columns(capsys):
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


def test_characters_that_the_terminal_lacks_become_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write("aé")
    assert raw.getvalue() == b"a\\xe9"
