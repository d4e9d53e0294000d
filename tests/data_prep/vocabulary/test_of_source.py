"""A tokenizer learned from the text of the data set: the same as in two steps, and its size."""

from pathlib import Path

import pytest

from data_prep import text as script
from data_prep.dataset.shards import open_data_set
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.sources.file_source import file_source
from data_prep.train_tokenizer import TokenizerOptions, train_tokenizer
from data_prep.vocabulary import merges, of_source
from data_prep.vocabulary.of_source import fitting_vocab_size, tokenizer_of_source
from storage.byte_pairs import END_OF_TEXT
from tests.data_prep.stories import story

pytestmark = pytest.mark.skipif(merges.gigatoken is None, reason="gigatoken is not installed")

OPTIONS = PrepareOptions(workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["data_prep/text.py", *words])
    script.main()


def test_one_call_gives_the_bytes_of_two(tmp_path, monkeypatch):
    text = tmp_path / "stories.txt"
    text.write_text(END_OF_TEXT.join(story(number) for number in range(300)))
    train_tokenizer(TokenizerOptions((str(text),), 300, tmp_path / "x_tokenizer", held_out=0))
    (tmp_path / "a").mkdir()
    options = PrepareOptions(workers=1, tokenizer=tmp_path / "x_tokenizer")
    prepare(file_source([str(text)]), tmp_path / "a" / "x", options)
    words = (str(text), "--vocab-size", "300", "--workers=1", "--out", str(tmp_path / "b" / "x"))
    run(monkeypatch, *words)
    assert contents(tmp_path / "a" / "x") == contents(tmp_path / "b" / "x")
    # Again: nothing is learned again, and another size is another data set.
    monkeypatch.setattr(of_source, "learn_merges", None)
    run(monkeypatch, *words)
    with pytest.raises(TypeError):
        run(monkeypatch, *words, "--vocab-size=301")


def test_few_documents_lose_their_ends_to_validation_and_the_tokenizer_never_sees_them(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("river stone " * 90 + "zebra quartz " * 9)
    source = file_source([str(tmp_path)])
    options = PrepareOptions(workers=1, split="auto")
    tokenizer = tokenizer_of_source(source, "auto", tmp_path / "x", options)
    assert not any(b"zebra" in token for token in tokenizer._pairs.tokens)
    data = prepare(source, tmp_path / "x", options, tokenizer)
    assert (data.manifest.train.documents, data.manifest.val.documents) == (2, 2)
    assert open_data_set(tmp_path / "x").manifest.tokenizer.name == "x_tokenizer"


def test_many_documents_are_divided_by_hash(tmp_path):
    text = tmp_path / "stories.txt"
    text.write_text(END_OF_TEXT.join(story(number) for number in range(400)))
    data = prepare(file_source([str(text)]), tmp_path / "x", PrepareOptions(1, split="auto"))
    assert data.manifest.split_rule["split"] == "hash"
    assert data.manifest.train.documents + data.manifest.val.documents == 400


def test_the_size_grows_with_the_text():
    sizes = [fitting_vocab_size(n) for n in (0, 20_000, 2_400_000, 80_000_000, 10**12)]
    assert sizes == sorted(sizes)
    assert sizes == [384, 1024, 4096, 8192, 8192]


def test_a_text_that_gives_fewer_ids_is_an_error_with_a_number_and_fine_with_auto(tmp_path):
    (tmp_path / "a.txt").write_text("ab ab ab")
    source = file_source([str(tmp_path)])
    with pytest.raises(ValueError, match="fewer than vocab_size=300; use that many"):
        tokenizer_of_source(source, 300, tmp_path / "x", OPTIONS)
    (tmp_path / "a.txt").write_text("  \n" * 600)  # several pairs give the same bytes
    assert tokenizer_of_source(source, "auto", tmp_path / "x", OPTIONS).n_vocab < 300


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the text has 0 bytes, too few"),
        (b"three short words", "give at least a page, 1000 bytes"),
        (b"caf\xe9 au lait " * 100, "document 1 .byte 3.: it is not UTF-8, perhaps latin1"),
        (b"%PDF-1.7\n" * 200, "is a PDF; save its text as .txt"),
    ],
)
def test_what_is_no_text_or_too_little_is_one_sentence_before_anything_is_written(
    tmp_path, content, reason
):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        tokenizer_of_source(file_source([str(tmp_path)]), "auto", tmp_path / "x", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_another_text_of_the_same_name_is_noticed(tmp_path):
    text = tmp_path / "a.txt"
    for content in ("one text of a page. " * 60, "another one. " * 100):
        text.write_text(content)
        source = file_source([str(text)])
        options = PrepareOptions(workers=1, split="auto")
        tokenizer = tokenizer_of_source(source, "auto", tmp_path / "x", options)
        if content.startswith("one"):
            prepare(source, tmp_path / "x", options, tokenizer)
    with pytest.raises(ValueError, match="there: made of a.txt with other content"):
        prepare(source, tmp_path / "x", options, tokenizer)


def test_of_a_large_text_the_first_part_is_enough(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    (tmp_path / "a.txt").write_text("é" * 100)
    monkeypatch.setattr(of_source, "_MOST_BYTES", 51)
    tokenizer_of_source(file_source([str(tmp_path)]), 258, tmp_path / "x", OPTIONS)
    assert "258 ids, learned from the first 50 bytes" in caplog.text


def test_a_tokenizer_and_a_size_exclude_each_other(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "a.txt", "--vocab-size", "auto", "--tokenizer", "x", "--out", "y")
    assert "give one of them" in capsys.readouterr().err
