"""eval/generate.py as a user starts it: on one rank, under torchrun, with two checkpoints."""

import json

import pytest

from data_prep.tokenizer import Tokenizer
from eval.generate import Arguments, print_comparison, print_samples
from eval.sampling.next_token import GenerateOptions
from eval.subject import load_subject
from model.checkpoint import save_model
from storage.byte_pairs import ranks_file
from storage.checkpoint_folder import write_manifest
from storage.terminal.json_output import STANDARD_OUTPUT
from tests.eval_subjects import ALONE, tiny_checkpoint, tiny_model
from tests.launching import python, together


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("generate") / "checkpoint")


@pytest.mark.slow
def test_one_and_two_ranks_write_the_same_json_and_nothing_else(checkpoint):
    command = ["eval/generate.py", "--checkpoint", str(checkpoint), "--prompt", "A list", "",
               "--samples", "3", "--max-tokens", "60", "--batch-size", "2", "--json"]  # fmt: skip
    alone, two = python(*command), together(2, *command)
    assert (alone.returncode, two.returncode) == (0, 0), alone.stderr + two.stderr
    lines = [json.loads(line) for line in alone.stdout.splitlines()]
    order = [(line["prompt_index"], line["sample_index"]) for line in lines]
    assert order == [(p, s) for p in range(2) for s in range(3)]
    assert two.stdout == alone.stdout
    assert "360 tokens in" in alone.stderr
    assert alone.stderr.count("tokens/s") == two.stderr.count("tokens/s") == 1


def test_the_script_reads_standard_input_and_logs_its_speed(checkpoint, tmp_path):
    words = ["--checkpoint", str(checkpoint), "--prompt-file", "-", "--max-tokens", "4"]
    words += ["--json", str(tmp_path / "texts.jsonl")]
    done = python("eval/generate.py", *words, typed="One\nTwo\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("One")
    assert "\n---\nTwo" in done.stdout
    assert "8 tokens in" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["One", "Two"]
    assert all(line["checkpoint"] == str(checkpoint) for line in lines)


def test_a_checkpoint_compared_with_itself_gives_equal_columns(checkpoint, capsys):
    arguments = Arguments(checkpoint, sampling=GenerateOptions(max_tokens=20))
    print_comparison(arguments, checkpoint, ["A list"], ALONE)
    head, page = capsys.readouterr().out.split("\n---\n")
    assert str(checkpoint)[-20:] in head.replace(" ", "").replace("│", "").replace("\n", "")
    halves = [line.split("│") for line in page.splitlines()[2:]]
    assert len(halves) > 1
    assert all(left.strip() == right.strip() for left, right in halves)


def test_each_checkpoint_uses_its_own_tokenizer(checkpoint, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    save_model(other, tiny_model(vocab_size=257))
    bytes_alone = Tokenizer("bytes", r".+|\s+", ranks_file(bytes([i]) for i in range(256)))
    bytes_alone.save(other / "tokenizer")
    write_manifest(other)
    options = GenerateOptions(max_tokens=20)
    for folder in (checkpoint, other):
        print_samples(
            load_subject(folder, ALONE),
            ["Aé"],
            Arguments(folder, json=STANDARD_OUTPUT, sampling=options),
        )
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert max(first["token_ids"]) > 257 > max(second["token_ids"])
    assert second["text"] == bytes_alone.decode(second["token_ids"])
    lines = print_comparison(Arguments(checkpoint, sampling=options), other, ["Aé"], ALONE)
    assert [json.loads(line) for line in lines.splitlines()] == [first, second]
    assert "│" in capsys.readouterr().out


@pytest.mark.parametrize("pruned", ["model.safetensors", "tokenizer/meta.json", "MANIFEST.json"])
def test_an_incomplete_checkpoint_is_an_error_that_names_the_file(tmp_path, pruned):
    folder = tiny_checkpoint(tmp_path / "checkpoint")
    (folder / pruned).unlink()
    with pytest.raises(ValueError, match=rf"{pruned}.*|complete checkpoint"):
        load_subject(folder, ALONE)
