"""train_tokenizer.py: the learned merges, and the way from a text to a trained model."""

import base64
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import log
from pathlib import Path

import pytest
import regex
import torch

from data_prep import train_tokenizer as module
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.sources.file_source import file_source
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer, load_tokenizer
from data_prep.train_tokenizer import TokenizerOptions, train_tokenizer
from data_prep.vocabulary import merges
from data_prep.vocabulary.measured import log_bytes_per_token
from eval.sampling.next_token import GenerateOptions
from eval.subject import load_subject
from eval.tasks.val_loss import validation_sums
from storage.byte_pairs import END_OF_TEXT, GPT2_PATTERN, PATTERNS
from tests.eval_subjects import generate
from tests.runs import built, run_to_end, tiny_config

pytestmark = pytest.mark.skipif(merges.gigatoken is None, reason="gigatoken is not installed")

WORDS = ["river", "light", "runs", "under", "old", "stone", "stones", "the", "café", "evening"]
STORIES = [
    f"{number}: " + " ".join(WORDS[number * k % 10] for k in range(1, 40)) for number in range(200)
]
Word = tuple[bytes, ...]


def write_text(folder: Path, texts: list[str] = STORIES) -> Path:
    path = folder / "stories.txt"
    path.write_text(END_OF_TEXT.join(texts))
    return path


def trained(folder: Path, vocab_size: int = 320, **options) -> Tokenizer:
    text = write_text(folder)
    return train_tokenizer(TokenizerOptions((str(text),), vocab_size, folder / "own", **options))


def tokens_of(tokenizer: Tokenizer) -> list[bytes]:
    return [base64.b64decode(line.split()[0]) for line in tokenizer.ranks.splitlines()]


def pair_counts(words: Counter[Word]) -> Counter[tuple[bytes, bytes]]:
    pairs: Counter[tuple[bytes, bytes]] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            pairs[pair] += count
    return pairs


def merged(word: Word, pair: tuple[bytes, bytes]) -> Word:
    parts: list[bytes] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] = parts[-1] + part
        else:
            parts.append(part)
    return tuple(parts)


def test_every_merge_is_of_the_most_frequent_pair(tmp_path):
    tokens = tokens_of(trained(tmp_path, held_out=0))
    assert tokens[:256] == [bytes([byte]) for byte in range(256)]
    words: Counter[Word] = Counter()
    for story in STORIES:
        for word in regex.findall(GPT2_PATTERN, story):
            words[tuple(bytes([byte]) for byte in word.encode())] += 1
    for token in tokens[256:]:
        pairs = pair_counts(words)
        most = max(pairs.values())
        [pair] = [pair for pair in pairs if pair[0] + pair[1] == token and pairs[pair] == most]
        words = Counter({merged(word, pair): count for word, count in words.items()})


def test_end_of_text_is_the_last_id_and_no_part_of_the_vocabulary(tmp_path):
    tokenizer = trained(tmp_path)
    assert (tokenizer.n_vocab, tokenizer.end_of_text) == (320, 319)
    assert not any(b"<|" in token for token in tokens_of(tokenizer))
    assert tokenizer.decode(tokenizer.encode("naïve 🦜 stones")) == "naïve 🦜 stones"


def test_the_same_text_gives_the_same_tokenizer(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = trained(tmp_path / "a"), trained(tmp_path / "b")
    assert first.ranks == second.ranks
    assert load_tokenizer(tmp_path / "a" / "own").ranks_sha256 == second.ranks_sha256


def test_documents_are_separated_and_cut_at_the_limit(tmp_path):
    path = tmp_path / "text"
    assert module._write_texts(path, [b"ab", "né".encode(), b"c"], None) == 6
    assert path.read_bytes() == b"ab\xffn\xc3\xa9\xffc\xff"
    assert module._write_texts(path, [b"ab", "né".encode(), b"c"], 4) == 3
    assert path.read_bytes() == b"ab\xffn"


def test_no_other_files_are_left(tmp_path, capfd):
    trained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "stories.txt"]
    files = sorted(path.name for path in (tmp_path / "own").iterdir())
    assert files == ["meta.json", "ranks.tiktoken"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("size", "reason"), [(2**31, "31 bits"), (256, "256 bytes and end-of-text"), (0, "257")]
)
def test_a_vocabulary_out_of_range_is_refused(size, reason):
    with pytest.raises(ValueError, match=reason):
        TokenizerOptions(("text.txt",), size)


def test_a_text_too_short_for_the_vocabulary_is_refused(tmp_path):
    text = write_text(tmp_path, ["ab ab"])
    with pytest.raises(ValueError, match="more than the [0-9]+ ids"):
        train_tokenizer(TokenizerOptions((str(text),), 300, tmp_path / "own"))
    assert not (tmp_path / "own").exists()


def test_a_folder_that_exists_is_never_overwritten(tmp_path):
    trained(tmp_path)
    with pytest.raises(ValueError, match="exists already"):
        trained(tmp_path)


def test_without_gigatoken_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(merges, "gigatoken", None)
    with pytest.raises(ValueError, match=r"\[fast\]"):
        trained(tmp_path)


def test_from_a_text_to_samples_of_a_model_with_its_own_tokenizer(tmp_path):
    tokenizer = trained(tmp_path, 400)
    source = file_source([str(tmp_path / "stories.txt")])
    options = PrepareOptions(workers=1, val_tokens=1000, tokenizer=tmp_path / "own")
    data = prepare(source, tmp_path / "data", options)
    assert data.manifest.tokenizer.ranks_sha256 == tokenizer.ranks_sha256
    run = run_to_end(tiny_config(tmp_path / "data", tmp_path / "run", steps=3))
    assert (run.model.config.vocab_size, run.model.config.padded_vocab_size) == (400, 512)
    subject = load_subject(run.folder.recover_newest_checkpoint(), run.ranks)
    loss = validation_sums(subject, data.split("val"), 320, 16, 4, torch.float32).tags("val")
    bytes_per_token = data.manifest.val.text_bytes / data.manifest.val.tokens
    expected = loss["val/loss"] / log(2) / bytes_per_token
    assert loss["val/bits_per_byte"] == pytest.approx(expected, rel=0.2)
    [text] = generate(subject.model, subject.tokenizer, ["the river"], GenerateOptions(8))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_wrong_vocabulary_or_tokenizer_is_refused_before_training(tmp_path):
    trained(tmp_path, 300)
    source = file_source([str(tmp_path / "stories.txt")])
    prepare(source, tmp_path / "gpt2", PrepareOptions(workers=1, val_tokens=1000))
    first = run_to_end(tiny_config(tmp_path / "gpt2", tmp_path / "run", steps=3))
    own = PrepareOptions(workers=1, val_tokens=1000, tokenizer=tmp_path / "own")
    prepare(source, tmp_path / "data", own)
    config = tiny_config(tmp_path / "data", tmp_path / "other")
    with pytest.raises(ValueError, match="give --model.vocab-size 300, or"):
        built(replace(config, model=replace(config.model, vocab_size=301)))
    with pytest.raises(ValueError, match="another tokenizer"):
        built(replace(config, init=first.folder.recover_newest_checkpoint()))
    with pytest.raises(ValueError, match="another data set .*tokenizer=gpt2"):
        prepare(source, tmp_path / "gpt2", own)


@pytest.mark.parametrize("spelling", ["{}", "--source {}", "--data {}", "--data={}"])
def test_the_text_may_be_named_in_every_way(tmp_path, monkeypatch, spelling):
    words = spelling.format(write_text(tmp_path)).split()
    monkeypatch.setattr(
        "sys.argv", ["x", *words, "--out", str(tmp_path / "own"), "--vocab-size=300"]
    )
    module.main()
    assert load_tokenizer(tmp_path / "own").n_vocab == 300


def test_no_text_is_one_sentence():
    with pytest.raises(ValueError, match="no text is given; name files"):
        TokenizerOptions()


def test_what_is_held_out_is_measured_and_not_learned(tmp_path, caplog):
    caplog.set_level("INFO")
    texts = [story if number % 4 != 3 else "zebra " * 50 for number, story in enumerate(STORIES)]
    path = write_text(tmp_path, texts)
    options = TokenizerOptions((str(path),), 300, tmp_path / "own", held_out=4)
    tokens = tokens_of(train_tokenizer(options))
    assert not any(b"eb" in token for token in tokens)
    assert "held-out text (15,000 bytes, 50 texts): 1.0" in caplog.text
    assert "1.000 ± 0.000 (standard error) bytes per token; GPT-2's 50,257 ids: 2.9" in caplog.text
    assert re.search(r"read \d.*, words counted and merged \d.*, measured \d", caplog.text)


def test_of_few_documents_the_end_is_held_out(tmp_path, caplog):
    caplog.set_level("INFO")
    path = write_text(tmp_path, ["river stone " * 200 + "zebra " * 200])
    options = TokenizerOptions((str(path),), 264, tmp_path / "own", held_out=3)
    tokens = tokens_of(train_tokenizer(options))
    assert not any(b"eb" in token for token in tokens)
    assert "held-out text (1,194 bytes, 1 text): " in caplog.text


@pytest.mark.parametrize("text", ["日本語の文" * 30, "a b\nc " * 30, "x"])
def test_the_end_is_cut_off_between_characters(tmp_path, text):
    path = tmp_path / "text"
    for share in (2, 3, 7):
        path.write_bytes(text.encode() + b"\xff")
        end = module._cut_off_end(path, share)
        assert path.read_bytes().rstrip(b"\xff") + end == text.encode()
        end.decode()


def test_text_that_is_refused_is_not_measured(caplog):
    caplog.set_level("INFO")
    tokenizer = Tokenizer("x", PATTERNS["gpt4"], gpt2_tokenizer().ranks)
    log_bytes_per_token(tokenizer, [b" " * 1_200_000, b""], "held-out text")
    assert "held-out text: none, so" in caplog.text


def test_a_text_held_out_from_every_one_is_refused():
    with pytest.raises(ValueError, match="held_out=1 must be 0 .* or a number from 2"):
        TokenizerOptions(("a.txt",), held_out=1)
