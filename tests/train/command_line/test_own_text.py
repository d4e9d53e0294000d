"""The preset own-text: a network, a batch and steps for a text and a machine."""

import pytest

from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.sources.file_source import file_source
from data_prep.vocabulary.of_source import tokenizer_of_source
from tests.runs import run_to_end
from train.command_line.own_text import Choice, _words, choose, own_text_config
from train.command_line.parse import parse

TWO_CORES, EIGHT_CORES, GPU = 12e12, 48e12, 1.5e16  # FLOPs in the time of a run


def chosen(tokens: float, flops: float = TWO_CORES, n_vocab: int = 2048) -> Choice:
    return choose(int(tokens), int(tokens / 10), n_vocab, flops)


def passes(tokens: float, flops: float = TWO_CORES) -> float:
    return chosen(tokens, flops).passes(int(tokens))


def test_a_small_text_is_not_passed_over_more_than_six_times():
    assert all(4 < passes(tokens) <= 6 for tokens in (7e3, 2e4, 1e5))
    assert passes(1e7) < 1


@pytest.mark.parametrize("tokens", [100, 7e3, 1e5, 6e5, 2e7, 1e10])
@pytest.mark.parametrize("flops", [TWO_CORES, EIGHT_CORES, GPU])
def test_there_are_ten_validations_and_batches_for_eight_processes(tokens, flops):
    found = chosen(tokens, flops)
    assert found.steps % 10 == 0
    assert found.steps >= 20
    assert found.batch_tokens % (8 * found.network.context_length) == 0
    assert found.network.context_length < tokens / 10


def test_more_text_and_a_faster_machine_give_a_larger_network():
    widths = [chosen(6e5, flops).network.n_embd for flops in (TWO_CORES, EIGHT_CORES, GPU)]
    assert widths == sorted(widths) == [128, 128, 256]
    assert chosen(2e7, GPU).network.n_embd == 512
    assert chosen(2e7, TWO_CORES).network.n_embd == 128


def test_a_text_without_room_for_a_window_is_one_sentence():
    with pytest.raises(ValueError, match="too short: 60 tokens to train on and 6 to validate on"):
        chosen(60)


def test_prompts_are_whole_words_of_the_validation_text(tmp_path):
    (tmp_path / "a.txt").write_text("alpha beta gamma delta. " * 200)
    options = PrepareOptions(workers=1, split="auto")
    prepare(file_source([str(tmp_path / "a.txt")]), tmp_path / "story", options)
    data, out = (tmp_path / "story",), tmp_path / "run"
    config = own_text_config(data, out)
    assert config == own_text_config(data, out)
    assert config.steps is not None
    words = {"alpha", "beta", "gamma", "delta."}
    assert config.sample.prompts
    assert all(set(prompt.split()) <= words for prompt in config.sample.prompts)
    assert (config.eval.every, config.sample.every) == (config.steps // 10, config.steps // 2)
    assert (config.eval.tasks, config.stop_when_worse) == ((), 3)


def test_a_page_of_text_becomes_a_run_with_samples(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "a.txt").write_text("The sea was calm, and the boat lay still. " * 30)
    source, options = file_source([str(tmp_path / "a.txt")]), PrepareOptions(1, split="auto")
    tokenizer = tokenizer_of_source(source, "auto", tmp_path / "story", options)
    prepare(source, tmp_path / "story", options, tokenizer)
    words = ["own-text", "--data", str(tmp_path / "story"), "--out", str(tmp_path / "run")]
    small = "--device cpu --steps 2 --model.n-layer 1 --model.n-embd 16 --sample.max-tokens 4"
    run = run_to_end(parse([*words, *small.split()]))
    assert "chosen for" in caplog.text
    assert (run.step, run.model.config.vocab_size) == (2, tokenizer.n_vocab)
    assert len(list(run.folder.samples.iterdir())) == 3
    caplog.clear()
    parse(words)
    assert "what is not given is as recorded" in caplog.text
    assert "chosen for" not in caplog.text


@pytest.mark.parametrize(
    ("text", "inside", "words"),
    [
        ("One two three fo", False, "One two three"),
        ("lapsed at the fi", True, "at the"),
        ('lapsed." She said no mo', True, "She said no"),
        ("lapsed at once. Sh", True, "at once."),
        ("x" * 90, False, "x" * 40),
        ("\x1b[2J\tThe\n\nsea wa", False, "[2J The sea"),
        ("\ufffd海の上の船", False, "海の上の船"),
        ("wordwithoutend", True, "wordwithoutend"),
        ("\n\n", False, ""),
    ],
)
def test_words_that_the_cut_divided_are_left_out(text, inside, words):
    assert _words(text, inside) == words
