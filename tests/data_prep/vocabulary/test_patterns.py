"""Patterns: two libraries read them alike, or the error says where not."""

import hashlib
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiktoken
from tiktoken_ext import openai_public

from data_prep import text as script
from data_prep.dataset.shards import open_data_set
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.sources.file_source import file_source
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer, load_tokenizer
from data_prep.train_tokenizer import TokenizerOptions, train_tokenizer
from data_prep.vocabulary import by_tokenizers, merges, patterns
from data_prep.vocabulary.by_tokenizers import learn_words, words_of
from data_prep.vocabulary.merges import NO_TEXT, learn_merges
from data_prep.vocabulary.patterns import chosen_pattern, first_difference
from model.hf_format.tokenizer_files import write_hf_tokenizer
from storage.byte_pairs import GPT2_PATTERN, PATTERNS, BytePairs, ranks_file
from tests.data_prep.stories import story
from tests.data_sets import rewrite_manifest

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    *(
        f"{story(number)} It's {number}4321 O'CLOCK,\r\n\n  café_au-lait!!\n"
        for number in range(300)
    ),
    *("日本語の文。" * n + "\t\tx = f'{y}'  # 3.14159\n" for n in range(1, 20)),
]


@pytest.mark.parametrize("name", PATTERNS)
def test_both_libraries_read_a_named_pattern_alike_and_leave_nothing_out(name):
    patterns._check(name, PATTERNS[name])


@pytest.mark.parametrize(
    ("name", "of_tiktoken"), [("gpt4", "cl100k_base"), ("o200k", "o200k_base"), ("gpt2", "gpt2")]
)
def test_a_named_pattern_splits_as_tiktoken_does(name, of_tiktoken, monkeypatch):
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **kwargs: {})
    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda **kwargs: {})
    published = openai_public.ENCODING_CONSTRUCTORS[of_tiktoken]()["pat_str"]
    words = words_of(patterns._probe(), PATTERNS[name])
    assert first_difference(published, words) is None


@pytest.mark.parametrize("name", ["gpt4", "o200k"])
def test_the_learned_ids_are_those_of_both_libraries(name, tmp_path):
    texts = NO_TEXT.join(text.encode() for text in TEXTS)
    learned = [learn_merges(texts, 700, PATTERNS[name]) for _ in range(2)]
    assert learned[0] == learned[1]
    assert len(learned[0]) == 699
    pairs = BytePairs("own", PATTERNS[name], ranks_file(learned[0]))
    ranks = dict(pairs.rank_of)
    ours = tiktoken.Encoding("own", pat_str=pairs.pattern, mergeable_ranks=ranks, special_tokens={})
    write_hf_tokenizer(tmp_path, pairs, 48)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*TEXTS, patterns._SENTENCES]:
        assert ours.encode_ordinary(text) == theirs.encode(text).ids


def test_no_text_gives_the_bytes_alone(tmp_path):
    (tmp_path / "text").write_bytes(b"")
    for nothing in (tmp_path / "text", b""):
        assert len(learn_merges(nothing, 300, PATTERNS["gpt4"])) == 256


@pytest.mark.skipif(merges.gigatoken is None, reason="gigatoken is not installed")
def test_of_the_same_words_both_learners_learn_the_same():
    joined = b"".join(text.encode() + NO_TEXT for text in TEXTS)
    by_gigatoken = learn_merges(joined, 600)
    phases: list[str] = []
    assert learn_words(iter(TEXTS), 599, GPT2_PATTERN, phases.append) == by_gigatoken
    assert phases == ["words counted", "merged"]


def test_a_long_text_is_counted_in_pieces_that_end_with_a_word():
    text = "word " * 40_000 + "é" * 70_000
    pieces = list(by_tokenizers._pieces(iter(["", text]), print))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 1 << 16
    assert [piece[:5] for piece in pieces[2:4]] == [" word", " word"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (r"(ab", r"no regular expression .*position 3: Opening parenthesis without closing"),
        (r"\p{Letters}x", r"no regular expression .*position \d+"),
        (r"\w+|\s+", r"""leaves out "'" \(U\+0027\).*end it with \|\[\\s\\S\]"""),
        (r"[^\n]+", r"leaves out '\\r'|leaves out '\\n'"),
        (r"a*|[\s\S]", "matches the empty text"),
        (r"(?P<x>[a-z]+)|[\s\S]", "tokenizers.*undefined group option; write it as both"),
        (r"\p{N}{1,2}+|[\s\S]", r"splits ' 1234567 ' differently in tiktoken"),
        (r"^\s+|[\s\S]", "splits .* differently in tiktoken"),
        ("a\n|b", "has 2 lines, but a pattern is a single line"),
        ("", "has 0 lines"),
        (b"\xff\xfe", "holds no pattern: 'utf-8' codec"),
        ("a" * 20_000, "it has 20000 bytes, and a pattern at most 10000"),
    ],
)
def test_a_file_that_cannot_serve_is_one_sentence(tmp_path, content, reason, capfd):
    path = tmp_path / "pattern.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=reason) as raised:
        chosen_pattern(str(path))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_panic_of_the_library_is_one_sentence(capfd):
    # As for (\w+\s?)+$ after some seconds.
    said = r"failed .*\(retry-limit-in-match over\); nest no"
    with pytest.raises(ValueError, match=said), by_tokenizers._as_value_error():
        os.write(2, b"stack backtrace")
        raise BaseException("retry-limit-in-match over")
    assert capfd.readouterr() == ("", "")


def test_a_name_that_is_none_lists_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="neither one of gpt2, gpt4, .* nor a file"):
        chosen_pattern("gpt5")
    with pytest.raises(ValueError, match="nor a file"):
        chosen_pattern(str(tmp_path))


def test_spaces_at_the_end_of_a_file_belong_to_the_pattern(tmp_path):
    path = tmp_path / "pattern.txt"
    path.write_bytes("\ufeff[^ ]+| +| \r\n".encode())
    assert chosen_pattern(str(path)) == "[^ ]+| +| "


def test_a_difference_is_found_wherever_the_words_end(tmp_path):
    words = words_of("one two 12345 three", PATTERNS["gpt4"])
    assert words == ["one", " two", " ", "123", "45", " three"]
    assert first_difference(PATTERNS["gpt4"], words) is None
    assert first_difference(PATTERNS["qwen2"], words) == " 12345"
    assert first_difference(r"\S+|\s", words) == "one two "
    assert first_difference(r"[\s\S]+", words) is not None


def test_without_tokenizers_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"tokenizers; `pip install tokenizers`"):
        merges.check_can_learn(PATTERNS["gpt4"])
    (tmp_path / "pattern").write_text(r"\S+|\s")
    with pytest.raises(ValueError, match="^a pattern other than gpt2 needs"):
        chosen_pattern(str(tmp_path / "pattern"))


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["data_prep/text.py", *words])
    script.main()


def test_a_data_set_with_a_pattern_of_its_own(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(TEXTS))
    (tmp_path / "pattern.txt").write_text(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s")
    words = (str(tmp_path / "a.txt"), "--workers=1", "--vocab-size=340", "--out")
    chosen = ("--pattern", str(tmp_path / "pattern.txt"))
    run(monkeypatch, *words, str(tmp_path / "x"), *chosen)
    tokenizer = load_tokenizer(tmp_path / "x")
    assert tokenizer.pattern == (tmp_path / "pattern.txt").read_text()
    texts = [token.decode(errors="ignore") for token in tokenizer._pairs.tokens]
    assert not any(re.search(r"\d\d|\s\s", text) for text in texts)
    assert "text that it has learned from" in caplog.text
    run(monkeypatch, *words, str(tmp_path / "x"), *chosen)  # complete: nothing is learned again
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, str(tmp_path / "x"), "--pattern=gpt2")


def test_a_pattern_without_a_vocabulary_to_learn_is_refused(monkeypatch, capsys, tmp_path):
    path: Path = tmp_path / "a.txt"
    path.write_text("a text")
    with pytest.raises(SystemExit):
        run(monkeypatch, str(path), "--pattern=gpt4", "--out", str(tmp_path / "x"))
    assert "give --vocab-size too" in capsys.readouterr().err


def test_a_tokenizer_that_is_cut_keeps_its_pattern(tmp_path):
    options = TokenizerOptions(cut=Path("gpt2"), pattern="gpt4", out=tmp_path / "x")
    with pytest.raises(ValueError, match="whose tokenizer has its own; omit it"):
        train_tokenizer(options)


def test_the_same_ranks_with_another_pattern_are_another_tokenizer(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("<|endoftext|>".join(TEXTS))
    source, ranks = file_source([str(text)]), gpt2_tokenizer().ranks
    by_name = {name: Tokenizer("x", PATTERNS[name], ranks) for name in ("gpt2", "gpt4", "qwen2")}
    assert len({tokenizer.ranks_sha256 for tokenizer in by_name.values()}) == 3
    assert by_name["gpt2"].ranks_sha256 == hashlib.sha256(ranks).hexdigest()
    options = PrepareOptions(workers=1)
    made = prepare(source, tmp_path / "x", options, by_name["gpt4"])
    # As older versions recorded it.
    plain = replace(made.manifest.tokenizer, ranks_sha256=by_name["gpt2"].ranks_sha256)
    for entry in (made.manifest.tokenizer, plain):
        rewrite_manifest(tmp_path / "x", tokenizer=entry)
        assert open_data_set(tmp_path / "x").tokenizer().pattern == PATTERNS["gpt4"]
        prepare(source, tmp_path / "x", options, by_name["gpt4"])
        with pytest.raises(ValueError, match="holds another data set .*tokenizer=x"):
            prepare(source, tmp_path / "x", options, by_name["qwen2"])
