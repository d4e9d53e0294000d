"""ready_tokens.py: token files of other programs become a data set, ids unchanged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.dataset.documents import Documents
from data_prep.dataset.shards import check_data_set, open_data_set
from data_prep.preparation.ready import taken_tokens
from data_prep.ready_tokens import ReadyTokensOptions, main, take_tokens
from data_prep.tokenizer import gpt2_tokenizer
from data_prep.verify import _verify_files
from tests.data_prep.preparation.cloud.flaky_store import files_below, flaky_store
from tests.data_sets import small_tokenizer
from tests.wide_data import wide_text, wide_tokenizer

EOT = 50256
TEXTS = [f"Story {n}: once upon a time, größer than {n * n}. " * (1 + n % 5) for n in range(80)]
VAL = [f"A held out story, number {n}. " * 3 for n in range(12)]


def documents(texts):
    return [np.array(gpt2_tokenizer().encode(text), np.uint16) for text in texts]


def opened(texts):
    """build-nanogpt's and llm.c's stream: end-of-text opens each document."""
    return np.concatenate([np.concatenate([[EOT], ids]) for ids in documents(texts)])


def llm_c(path, tokens, magic=20240520, version=1, kind="<u2"):
    head = np.zeros(256, "<i4")
    head[:3] = magic, version, len(tokens)
    path.write_bytes(head.tobytes() + tokens.astype(kind).tobytes())


def npy(folder):
    """build-nanogpt: .npy shards that cut documents; validation is the first shard."""
    train = opened(TEXTS)
    np.save(folder / "edufineweb_val_000000.npy", opened(VAL).astype(np.uint16))
    for number, part in enumerate(np.array_split(train, 3), start=1):
        np.save(folder / f"edufineweb_train_{number:06d}.npy", part.astype(np.uint16))


def bins(folder):
    """llm.c and modded-nanogpt."""
    llm_c(folder / "fineweb_val_000000.bin", opened(VAL))
    for number, part in enumerate(np.array_split(opened(TEXTS), 2), start=1):
        llm_c(folder / f"fineweb_train_{number:06d}.bin", part)


def bare(folder):
    """nanoGPT: uint16 without a header, and end-of-text closes each document."""
    for name, texts in (("train", TEXTS), ("val", VAL)):
        closed = np.concatenate([np.concatenate([ids, [EOT]]) for ids in documents(texts)])
        closed.astype("<u2").tofile(folder / f"{name}.bin")


def texts_of(data, split):
    found = Documents(data, split)
    return [found.text(number, 0) for number in range(found.shards.documents)]


def take(folder, **options):
    options = {"out": folder / "set", "shard_tokens": 1000} | options
    take_tokens(ReadyTokensOptions((str(folder / "in"),), **options))
    return open_data_set(options["out"])


@pytest.mark.parametrize("layout", [npy, bins, bare])
@pytest.mark.parametrize("at_once", [1 << 22, 97])
def test_every_layout_gives_the_same_documents(tmp_path, monkeypatch, caplog, layout, at_once):
    caplog.set_level("INFO")
    monkeypatch.setattr(taken_tokens, "_TOKENS_AT_ONCE", at_once)
    (tmp_path / "in").mkdir()
    layout(tmp_path / "in")
    data = take(tmp_path)
    check_data_set(data, "full")
    _verify_files(data, 1)
    assert texts_of(data, "train") == TEXTS
    assert texts_of(data, "val") == VAL
    manifest = data.manifest
    assert manifest.train.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert manifest.skipped_empty == (2 if layout is bare else 0)  # behind the last of each split
    assert all(shard.tokens < 1200 + at_once for shard in manifest.train.shards)
    assert len(manifest.train.shards) > 1 or at_once > 97
    assert ("first token is no end-of-text" in caplog.text) == (layout is bare)
    assert "sampled documents have the ids that gpt2 makes" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "set"]


def test_token_files_may_be_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    npy(tmp_path / "in")
    local = take(tmp_path)
    with flaky_store(files_below(tmp_path)) as store:
        options = ReadyTokensOptions(("flaky://in",), Path("remote"), shard_tokens=1000)
        take_tokens(options)
        read = len(store.reads)
        take_tokens(options)  # complete already: nothing is read
        assert len(store.reads) == read
        with pytest.raises(ValueError, match="holds another data set"):
            take_tokens(replace(options, shard_tokens=2000))
    assert open_data_set(tmp_path / "remote").fingerprint == local.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "remote", "set"]


def test_a_document_is_found_in_the_file_in_which_it_begins(tmp_path):
    (tmp_path / "in").mkdir()
    npy(tmp_path / "in")
    found = Documents(take(tmp_path), "train")
    places = [found.source(number) for number in range(found.shards.documents)]
    names = [name for name, _ in places]
    assert names == sorted(names)
    assert set(names) == {f"edufineweb_train_00000{n}.npy" for n in (1, 2, 3)}
    for name in set(names):
        rows = [row for own, row in places if own == name]
        assert rows == list(range(len(rows)))


def test_copies_are_counted_and_a_second_start_finds_it_finished(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    llm_c(tmp_path / "in/a_train.bin", opened([*TEXTS, TEXTS[3], TEXTS[4].upper()]))
    llm_c(tmp_path / "in/a_val.bin", opened(VAL))
    data = take(tmp_path)
    duplicates = data.manifest.duplicates
    assert (duplicates.exact, duplicates.normalised) == (1, 1)  # ö is not folded: format
    caplog.set_level("INFO")
    assert take(tmp_path).fingerprint == data.fingerprint
    assert "finished already" in caplog.text
    with pytest.raises(ValueError, match="another data set"):
        take(tmp_path, shard_tokens=7)


def test_validation_files_can_be_named(tmp_path):
    (tmp_path / "in").mkdir()
    llm_c(tmp_path / "in/one.bin", opened(TEXTS))
    llm_c(tmp_path / "in/two.bin", opened(VAL))
    data = take(tmp_path, val_files=(str(tmp_path / "in/two.bin"),))
    assert texts_of(data, "val") == VAL


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    small = small_tokenizer()
    (tmp_path / "in").mkdir()
    (tmp_path / "small").mkdir()
    small.save(tmp_path / "small")
    for name, texts in (("train", TEXTS), ("val", VAL)):
        parts = [np.array([small.end_of_text, *small.encode(text)]) for text in texts]
        np.save(tmp_path / f"in/{name}.npy", np.concatenate(parts))  # int64 is taken too
    with pytest.raises(ValueError, match="without the separator|another tokenizer"):
        take(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "small"]  # nothing half-written
    assert texts_of(take(tmp_path, tokenizer=tmp_path / "small"), "train") == TEXTS


def uint32_npy(folder, name, tokens):
    np.save(folder / f"{name}.npy", tokens.astype(np.uint32))


def llama_bin(folder, name, tokens):
    llm_c(folder / f"{name}.bin", tokens, magic=20240801, version=7, kind="<u4")


def bare_uint32(folder, name, tokens):
    tokens.astype("<u4").tofile(folder / f"{name}.bin")


@pytest.mark.parametrize("write", [uint32_npy, llama_bin, bare_uint32])
def test_ids_beyond_two_bytes_are_taken_over(tmp_path, write):
    wide = wide_tokenizer()
    texts = {"train": [wide_text(n) for n in range(20)], "val": [wide_text(n) for n in (20, 21)]}
    (tmp_path / "in").mkdir()
    wide.save(tmp_path / "tokenizer")
    for name, some in texts.items():
        parts = [np.array([wide.end_of_text, *wide.encode(text)]) for text in some]
        write(tmp_path / "in", name, np.concatenate(parts))
    data = take(tmp_path, tokenizer=tmp_path / "tokenizer")
    check_data_set(data, "full")
    assert data.manifest.token_bytes == 4
    assert {name: texts_of(data, name) for name in texts} == texts


def test_ids_of_another_encoding_are_noticed(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("train", "val"):
        ids = random.integers(0, EOT, (60, 20))
        ids[:, 0] = EOT
        np.save(tmp_path / f"in/{name}.npy", ids.ravel())
    with pytest.raises(ValueError, match=r"only \d+ have the ids that gpt2 makes of their text"):
        take(tmp_path)


def bad_header(folder):
    llm_c(folder / "in/a_train.bin", opened(TEXTS), version=3)


def short(folder):
    llm_c(folder / "in/a_train.bin", opened(TEXTS))
    path = folder / "in/a_train.bin"
    path.write_bytes(path.read_bytes()[:-10])


def too_large(folder):
    llm_c(folder / "in/a_train.bin", np.array([EOT, 128_000]), 20240801, 7, "<u4")


def floats(folder):
    np.save(folder / "in/a_train.npy", np.zeros(9))


def no_array(folder):
    (folder / "in/a_train.npy").write_bytes(b"no array")


def odd(folder):
    (folder / "in/a_train.bin").write_bytes(b"\0" * 7)


def empty(folder):
    llm_c(folder / "in/a_train.bin", np.array([EOT, EOT]))


def nothing(folder):
    (folder / "in/a_train.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (bad_header, "of version 3, and version 1 can be read"),
        (short, "copy or download it again"),
        (too_large, "token 1 is 128000, but gpt2 has the ids 0 to 50256"),
        (floats, "float64 of shape"),
        (no_array, "not a readable .npy"),
        (odd, "7 bytes, which uint16 tokens cannot fill"),
        (empty, "hold no document, only separators"),
        (nothing, "holds no token"),
        (lambda folder: None, "none of the 1 files is for training"),
    ],
)
def test_a_bad_file_is_named_in_one_sentence(tmp_path, monkeypatch, capsys, make, sentence):
    (tmp_path / "in").mkdir()
    llm_c(tmp_path / "in/a_val.bin", opened(VAL))
    make(tmp_path)
    words = ["ready_tokens.py", str(tmp_path / "in"), "--out", str(tmp_path / "set")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
