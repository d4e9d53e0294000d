"""A data set on disk: it is read back as written, and every kind of damage is an error."""

import io
import json
import os
import resource
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dataset.manifest import (
    FORMAT_VERSION,
    read_manifest,
    token_format,
    unigram_entropy_nats,
)
from data_prep.dataset.shards import check_data_set, open_data_set, shard_entry
from storage import digest
from storage.digest import file_sha256
from tests.data_sets import rewrite_manifest, save_shard, tiny_data_set
from tests.wide_data import wide_tokenizer


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    return tiny_data_set(tmp_path_factory.mktemp("untouched") / "data", documents=40).folder


@pytest.fixture
def folder(untouched, tmp_path):
    return shutil.copytree(untouched, tmp_path / "data")


def reseal(folder, name: str, **changes) -> None:
    """Put a changed shard into the manifest, with new digests."""
    train = read_manifest(folder).train
    size = next(shard.text_bytes for shard in train.shards if shard.name == name)
    entry = {**vars(shard_entry(folder, name, size)), **changes}
    shards = tuple(type(s)(**entry) if s.name == name else s for s in train.shards)
    rewrite_manifest(folder, train=replace(train, shards=shards))


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=600),
    shards=st.integers(1, 4),
    wide=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_documents_and_positions_come_back_across_shards(tmp_path_factory, lengths, shards, wide):
    folder = tmp_path_factory.mktemp("round") / "data"
    tokenizer = wide_tokenizer() if wide else None
    data = tiny_data_set(
        folder, lengths=lengths, shards=shards, val_fraction=0, tokenizer=tokenizer
    )
    split = data.split("train")
    documents = [split.read_document(index) for index in range(split.documents)]
    assert [len(document) for document in documents] == lengths == split.lengths.tolist()
    whole = np.concatenate(documents)
    assert np.array_equal(split.read(0, split.tokens), whole)
    third = split.tokens // 3
    assert np.array_equal(split.read(third, third), whole[third : 2 * third])
    starts, counts = split.document_starts(np.arange(len(lengths))), np.array(lengths)
    gathered = split.gather(starts[::-1], counts[::-1])
    assert np.array_equal(gathered, np.concatenate(documents[::-1]))


def test_a_data_set_gives_its_tokenizer_and_both_splits(folder):
    data = open_data_set(folder)
    assert data.tokenizer().n_vocab == 50257
    assert data.split("train").tokens == data.manifest.train.tokens
    assert data.split("val").documents == data.manifest.val.documents
    assert data.split("val").lengths.dtype == np.uint32


@pytest.mark.parametrize("mode", ["full", "cached", "size"])
def test_an_undamaged_data_set_passes_every_check(folder, mode):
    for _ in range(2):
        check_data_set(open_data_set(folder), mode)


def test_positions_outside_are_an_error(folder):
    split = open_data_set(folder).split("train")
    with pytest.raises(ValueError, match="not within"):
        split.read(split.tokens - 1, 2)
    with pytest.raises(ValueError, match="not one of"):
        split.read_document(split.documents)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no data set at .*data_prep/fineweb\.py"):
        open_data_set(tmp_path / "nothing")


def test_a_half_written_data_set_is_an_error(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="did not finish; run it again"):
        open_data_set(folder)


def test_a_newer_format_is_an_error(folder):
    rewrite_manifest(folder, format_version=FORMAT_VERSION + 2)
    with pytest.raises(ValueError, match=f"format_version={FORMAT_VERSION + 2}"):
        open_data_set(folder)


@pytest.mark.parametrize("changes", [{"format_version": 3}, {"token_bytes": 4}])
def test_a_format_that_is_not_the_vocabularys_is_an_error(folder, changes):
    rewrite_manifest(folder, **changes)
    with pytest.raises(ValueError, match="a vocabulary of 50257 ids has format_version=2 and"):
        open_data_set(folder)


def test_shards_are_as_wide_as_the_vocabulary_needs(folder):
    manifest = read_manifest(folder)
    large = replace(manifest.tokenizer, n_vocab=65_537)
    rewrite_manifest(folder, tokenizer=large)
    with pytest.raises(ValueError, match="of 65537 ids has format_version=3 and token_bytes=4"):
        open_data_set(folder)
    replace(manifest, tokenizer=large, **token_format(65_537)).sealed().write(folder)
    with pytest.raises(ValueError, match="holds <u2, but must hold <u4"):
        open_data_set(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 1}', "\x00"])
def test_a_damaged_manifest_is_an_error(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        open_data_set(folder)


def test_an_edited_manifest_is_an_error(folder):
    content = json.loads((folder / "manifest.json").read_text())
    content["train"]["documents"] += 1
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="fingerprint"):
        open_data_set(folder)


@pytest.mark.parametrize("kind", ["", ".lengths", ".source"])
def test_a_missing_file_is_an_error(folder, kind):
    (folder / f"train_000001{kind}.npy").unlink()
    with pytest.raises(ValueError, match=r"train_000001.* is missing"):
        open_data_set(folder)


@pytest.mark.fault("D1", injected="other type, order, shape, length, objects")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens: tokens.astype(np.int32), "holds <i4, but must hold <u2"),
        (lambda tokens: tokens.astype(np.float16), "holds <f2"),
        (lambda tokens: tokens.astype(">u2"), "holds >u2"),
        (lambda tokens: tokens.astype(object), "holds .O"),
        (lambda tokens: tokens[:, None], r"must have 1 dimension"),
        (lambda tokens: np.asfortranarray(np.stack([tokens, tokens])), "in Fortran order"),
        (lambda tokens: tokens[:-1], "the manifest says"),
        (lambda tokens: np.append(tokens, tokens[:1]), "the manifest says"),
    ],
)
def test_a_shard_of_another_form_is_an_error(folder, change, message):
    path = folder / "train_000000.npy"
    np.save(path, change(np.load(path)), allow_pickle=True)
    with pytest.raises(ValueError, match=f"train_000000.npy.*{message}"):
        open_data_set(folder)


@pytest.mark.parametrize("kind", ["", ".lengths", ".source"])
@pytest.mark.parametrize("extra", [-3, 5])
def test_a_file_that_is_too_short_or_too_long_is_an_error(folder, kind, extra):
    path = folder / f"val_000000{kind}.npy"
    content = path.read_bytes()
    path.write_bytes(content[:extra] if extra < 0 else content + bytes(extra))
    with pytest.raises(ValueError, match=f"val_000000{kind}.npy is .* bytes, but must be"):
        open_data_set(folder)


def test_a_file_that_is_no_npy_is_an_error(folder):
    (folder / "train_000000.npy").write_bytes(b"\x00" * 1000)
    with pytest.raises(ValueError, match=r"is not a \.npy file"):
        open_data_set(folder)


def test_a_header_that_claims_gigabytes_is_not_read_into_memory(folder):
    path = folder / "train_000000.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little"))
    os.truncate(path, 5 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"train_000000\.npy is not a \.npy file"):
        open_data_set(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


@pytest.mark.parametrize("mode", ["full", "cached"])
@pytest.mark.parametrize("kind", ["", ".lengths", ".source"])
def test_a_flipped_byte_is_an_error(folder, kind, mode):
    path = folder / f"train_000001{kind}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"train_000001{kind}.npy has sha256"):
        check_data_set(open_data_set(folder), mode)


def test_a_byte_flipped_after_the_digest_was_cached_is_found(folder):
    check_data_set(open_data_set(folder), "cached")
    test_a_flipped_byte_is_an_error(folder, "", "cached")


def test_a_wrong_cached_digest_does_not_condemn_an_undamaged_shard(folder, monkeypatch):
    monkeypatch.setattr(digest, "_COARSEST_CLOCK_NS", 0)  # its files are a moment old
    check_data_set(open_data_set(folder), "cached")
    memory = folder / ".digests-0-of-1.json"
    right = memory.read_text()
    wrong = {name: [*entry[:-1], "0" * 64] for name, entry in json.loads(right).items()}
    memory.write_text(json.dumps(wrong))
    check_data_set(open_data_set(folder), "cached")
    assert json.loads(memory.read_text()) == json.loads(right)


@pytest.mark.fault("D10", injected="one byte changed in place, size and modification time kept")
def test_a_byte_changed_in_place_with_its_time_set_back_is_found(folder, monkeypatch):
    monkeypatch.setattr(digest, "_COARSEST_CLOCK_NS", 0)  # its files are a moment old
    check_data_set(open_data_set(folder), "cached")
    path = folder / "train_000001.npy"
    before = path.stat()
    time.sleep(0.02)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"train_000001\.npy has sha256"):
        check_data_set(open_data_set(folder), "cached")


def test_what_another_number_of_processes_has_hashed_is_not_hashed_again(folder, monkeypatch):
    monkeypatch.setattr(digest, "_COARSEST_CLOCK_NS", 0)  # its files are a moment old
    data = open_data_set(folder)
    for index in range(3):
        check_data_set(data, "cached", share=(index, 3))
    hashed = []
    monkeypatch.setattr(digest, "file_sha256", hashed.append)
    check_data_set(data, "cached")
    assert hashed == []


def test_a_share_checks_its_own_shards_and_no_other(folder):
    content = bytearray((folder / "train_000001.npy").read_bytes())
    content[-1] ^= 1
    (folder / "train_000001.npy").write_bytes(content)
    data = open_data_set(folder)
    check_data_set(data, "full", share=(0, 3))
    check_data_set(data, "full", share=(2, 3))
    with pytest.raises(ValueError, match="train_000001"):
        check_data_set(data, "full", share=(1, 3))


def test_an_unknown_check_is_an_error(folder):
    with pytest.raises(ValueError, match="data_check=quick"):
        check_data_set(open_data_set(folder), "quick")


@pytest.mark.fault("D2", injected="id 50257, the manifest made to fit")
@pytest.mark.parametrize("mode", ["full", "cached"])
def test_an_id_beyond_the_vocabulary_is_found_though_the_manifest_fits_it(folder, mode):
    tokens = np.load(folder / "train_000000.npy")
    tokens[5] = 50257
    np.save(folder / "train_000000.npy", tokens)
    reseal(folder, "train_000000", max_id=50256)
    for _ in range(2):
        with pytest.raises(ValueError, match="holds the id 50257"):
            check_data_set(open_data_set(folder), mode)


def test_an_id_beyond_the_vocabulary_in_the_manifest_is_an_error_on_opening(folder):
    reseal(folder, "train_000000", max_id=60000)
    with pytest.raises(ValueError, match="holds the id 60000"):
        open_data_set(folder)


def test_lengths_that_do_not_fit_the_tokens_are_an_error(folder):
    lengths = np.load(folder / "train_000000.lengths.npy")
    lengths[0], lengths[1] = lengths[0] + 1, lengths[1] - 1
    np.save(folder / "train_000000.lengths.npy", lengths)
    reseal(folder, "train_000000")
    with pytest.raises(ValueError, match="each open with end-of-text"):
        check_data_set(open_data_set(folder), "full")


def test_a_tokenizer_that_did_not_make_the_tokens_is_an_error(folder):
    manifest = read_manifest(folder)
    rewrite_manifest(folder, tokenizer=replace(manifest.tokenizer, ranks_sha256="0" * 64))
    with pytest.raises(ValueError, match="tokens were made with 0000"):
        open_data_set(folder).tokenizer()


def test_an_unknown_split_and_an_empty_one_are_errors(tmp_path):
    data = tiny_data_set(tmp_path / "data", documents=5, val_fraction=0)
    with pytest.raises(ValueError, match="split=test is not known"):
        data.split("test")
    with pytest.raises(ValueError, match=r"no val tokens.*--val-tokens"):
        data.split("val")


def test_the_fingerprint_follows_the_content(tmp_path, folder):
    same = tiny_data_set(tmp_path / "same", documents=40)
    other = tiny_data_set(tmp_path / "other", documents=40, seed=1)
    assert same.fingerprint == open_data_set(folder).fingerprint != other.fingerprint
    assert read_manifest(folder) == same.manifest


def test_the_unigram_entropy_is_that_of_the_counts():
    assert unigram_entropy_nats(np.array([5, 0, 5])) == pytest.approx(np.log(2))
    assert unigram_entropy_nats(np.array([0, 7])) == 0
    assert unigram_entropy_nats(np.zeros(3)) == 0


def test_saved_shards_have_the_documented_types(tmp_path):
    save_shard(tmp_path, "x", np.arange(3), np.array([3]), np.array([[0, 9]]))
    types = [np.load(tmp_path / f"x{kind}.npy").dtype.str for kind in ("", ".lengths", ".source")]
    assert types == ["<u2", "<u4", "<u4"]
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3, dtype=np.uint16))
    assert (tmp_path / "x.npy").read_bytes() == buffer.getvalue()
    assert shard_entry(tmp_path, "x", 7).tokens_sha256 == file_sha256(tmp_path / "x.npy")
