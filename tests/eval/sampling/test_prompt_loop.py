"""Prompts that are typed: their texts, what is encoded again, settings, and how it ends."""

import json
import logging
from pathlib import Path

import pytest
import torch

from eval.generate import Arguments, _talk
from eval.sampling import prompt_loop
from eval.sampling.decoding import PartialSample, sample_batches
from eval.sampling.kept_cache import TextWriter
from eval.sampling.next_token import GenerateOptions
from eval.sampling.prompt_loop import PromptLoop
from parallel.ranks import Ranks
from tests.eval_subjects import generate, limit_memory, tiny_checkpoint, tiny_subject
from tests.launching import python

SUBJECT = tiny_subject()
OPTIONS = GenerateOptions(max_tokens=6, seed=3)


def talked(capsys, *lines, options=OPTIONS, subject=SUBJECT):
    """The texts that a loop writes for these lines; an exception among them is raised."""
    waiting = list(lines)

    def read(_):
        line = waiting.pop(0) if waiting else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line

    loop = PromptLoop(subject, options, read)
    capsys.readouterr()
    loop.run()
    return loop, capsys.readouterr().out


def test_each_line_is_continued_as_a_prompt_of_a_file_with_that_seed(capsys):
    prompts = ["Once upon", "The end", "Once upon"]
    texts = generate(SUBJECT.model, SUBJECT.tokenizer, prompts, OPTIONS)
    shown = "".join(f"{p}{t}\n" for p, t in zip(prompts, texts, strict=True))
    assert talked(capsys, *prompts)[1] == shown + "\n"


def test_a_text_longer_than_the_context_is_as_without_the_loop(capsys):
    options = GenerateOptions(max_tokens=70, seed=3)  # the context is 48
    (text,) = generate(SUBJECT.model, SUBJECT.tokenizer, ["Once"], options)
    assert talked(capsys, "Once", options=options)[1] == f"Once{text}\n\n"


def test_a_text_that_is_continued_costs_only_its_new_tokens_and_is_the_same(capsys, monkeypatch):
    subject = tiny_subject()
    encode = subject.tokenizer.encode
    first = PartialSample(encode("Once upon a time"), (0, 0), subject.tokenizer, OPTIONS)
    sample_batches(subject.model, [[first]], OPTIONS)
    more = PartialSample(first.ids + encode(" and so"), (1, 0), subject.tokenizer, OPTIONS)
    sample_batches(subject.model, [[more]], OPTIONS)
    passes = limit_memory(monkeypatch, subject.model, 1000)
    _, out = talked(capsys, "Once upon a time", ":add  and so", subject=subject)
    expected = [f"Once upon a time{first.to_sample().text}", f" and so{more.to_sample().text}"]
    assert out == "\n".join([*expected, "", ""])
    # The prompt, the tokens of the first text one by one, the last of them with the addition.
    assert passes == [3, *6 * [1], len(encode(" and so")), *6 * [1]]


def test_further_samples_of_a_prompt_do_not_encode_it_again(capsys, monkeypatch):
    subject, options = tiny_subject(), GenerateOptions(max_tokens=2, samples=3)
    passes = limit_memory(monkeypatch, subject.model, 1000)
    _, out = talked(capsys, "Once upon a time", options=options, subject=subject)
    assert out.count("\n---\nOnce upon a time") == 2
    assert passes == [3, *6 * [1]]


def test_an_empty_line_continues_a_text_and_begins_one_after_its_end(capsys):
    loop, out = talked(capsys, "Once", "", "")
    assert out.startswith("Once")
    assert len(loop._ids) == 1 + 3 * OPTIONS.max_tokens
    ended = PartialSample([5], (0, 0), SUBJECT.tokenizer, OPTIONS)
    ended.add(SUBJECT.tokenizer.end_of_text, 0.0)
    assert loop._rest_of(ended, [5]) == []


def test_settings_are_changed_shown_and_refused_with_the_rule(capsys, caplog):
    caplog.set_level(logging.INFO)
    wrong = [":temperature hot", ":top-p 2", ":max-tokens 0", ":seed 1.5", ":topk 3", ":top-k nan"]
    right = [":temperature 0.7", ":top-k 0", r":stop a\nb", ":settings", ":help"]
    loop, _ = talked(capsys, *wrong, *right, ":stop", ":max-tokens", ":quit", "never read")
    assert loop.options == GenerateOptions(max_tokens=6, seed=3, temperature=0.7, top_k=0)
    said = [record.message for record in caplog.records]
    assert said[1] == ":temperature hot is no number; such as :temperature 1.0"
    assert said[2] == "top_p=2.0 is not a probability; use more than 0, at most 1"
    assert said[5].startswith(":topk is no setting; :help lists all")
    assert said[7:10] == [":temperature 0.7", ":top-k 0", r":stop 'a\nb'"]
    assert ":max-tokens 6" in said[10]
    assert "An empty line continues" in said[11]
    assert said[12:] == [":stop (none)", ":max-tokens 6"]


def test_a_seed_begins_the_random_numbers_again(capsys):
    _, out = talked(capsys, "Once", ":seed 3", "Once")
    first, second, _, _ = out.split("\n")
    assert first == second


def test_an_interrupted_text_can_be_continued_and_the_loop_too(capsys, monkeypatch):
    pressed = []

    def write(text, plain=prompt_loop.write):
        plain(text)
        pressed.append(text)
        if len(pressed) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(prompt_loop, "write", write)
    loop, out = talked(capsys, "Once", "", KeyboardInterrupt(), "The", KeyboardInterrupt())
    assert len(loop._ids) == 1 + OPTIONS.max_tokens
    assert out.count("\n") == 6  # three texts, two interruptions of the prompt, the end
    _, out = talked(capsys, KeyboardInterrupt(), KeyboardInterrupt(), "never read")
    assert out == "\n\n"


def test_too_little_memory_is_one_sentence_and_the_loop_continues(capsys, monkeypatch, caplog):
    subject = tiny_subject()
    limit_memory(monkeypatch, subject.model, 2)
    _, out = talked(capsys, "Once upon a time", "Once", subject=subject)
    assert "10 tokens do not fit the memory of cpu; use fewer max_tokens" in caplog.text
    assert len(out) > len("Once upon a time\nOnce\n\n")


def test_a_cache_that_is_too_small_grows_and_keeps_what_it_holds(monkeypatch):
    subject = tiny_subject()
    writer, prompt = (
        TextWriter(subject.model, OPTIONS),
        subject.tokenizer.encode("Once upon a time"),
    )
    passes = limit_memory(monkeypatch, subject.model, 1000)
    for number in (2, 30):
        options = GenerateOptions(max_tokens=number, seed=3)
        sample = PartialSample(prompt, (0, 0), subject.tokenizer, options)
        writer.finish(sample, options, lambda *_: None)
    assert passes == [3, *32 * [1]]


@pytest.mark.slow
def test_at_a_terminal_prompts_are_typed_and_ctrl_c_stops_a_text_only(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "c")
    # Keys that are typed before the prompt is there are the terminal's, which echoes or loses them.
    steps = [
        ("> ", ":max-tokens 1000000\n"),
        ("\n> ", "Once upon\n"),
        ("\nOnce upon", ""),  # the text, not the line that was typed
        (" ", "\x03"),
        ("\n> ", ":max-tokens 3\n"),
        ("\n> ", "The\n"),
        ("\nThe", ""),
        ("\n> ", "\x04"),
    ]
    words = ("eval/generate.py", "--checkpoint", str(checkpoint), "--device", "cpu")
    done = python("tests/programs/typing_at_terminal.py", json.dumps(steps), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_prompts_cannot_be_typed_to_several_processes():
    with pytest.raises(ValueError, match="typed to 2 processes; start it without torchrun"):
        _talk(Arguments(Path("x")), Ranks(0, 2, 0, 2, torch.device("cpu")))
