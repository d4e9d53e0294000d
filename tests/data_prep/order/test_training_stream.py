"""The order of training: a permutation of the documents and windows without gaps."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dataset.shards import TokenShards
from data_prep.order.epoch_index import EpochIndex
from data_prep.order.permutation import FeistelPermutation
from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource, read_windows, windows_digest
from storage.digest import fingerprint
from tests.data_sets import tiny_data_set

EXPECTED_IMAGES = [4106799, 3595258, 6386590, 8527586, 4833222]
EXPECTED_DOCUMENTS = [1112, 416, 1301, 1652, 1184]
EXPECTED_ORDER = "02c390a6af69ddacedce3b86824f91968cb3cc439f84536e1aa82dabbb233e69"
EXPECTED_DIGEST = 15306634950933975642

SEEDS = st.integers(0, 2**64 - 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    data = tiny_data_set(tmp_path_factory.mktemp("order") / "data", documents=90, shards=3)
    return data.split("train")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """More documents than a block, so that several blocks and stored positions are crossed."""
    lengths = np.random.default_rng(3).integers(1, 6, 2500).tolist()
    folder = tmp_path_factory.mktemp("large") / "data"
    return tiny_data_set(folder, lengths=lengths, val_fraction=0).split("train")


@cache
def naive_stream(shards, seed: int, epochs: int) -> np.ndarray:
    parts = []
    for epoch in range(epochs):
        order = FeistelPermutation(shards.documents, seed, epoch)
        ids = order(np.arange(shards.documents, dtype=np.uint64))
        parts += [shards.read_document(int(document)) for document in ids]
    return np.concatenate(parts)


@given(count=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 2**32))
@settings(max_examples=60)
def test_the_permutation_is_a_bijection_and_the_inverse_undoes_it(count, seed, epoch):
    permutation = FeistelPermutation(count, seed, epoch)
    indices = np.arange(count, dtype=np.uint64)
    images = permutation(indices)
    assert np.array_equal(np.sort(images), indices)
    assert np.array_equal(permutation.inverse(images), indices)


@given(count=st.integers(1, 2**40), seed=SEEDS, data=st.data())
@settings(max_examples=60)
def test_the_inverse_undoes_the_permutation_of_large_ranges(count, seed, data):
    index = data.draw(st.integers(0, count - 1))
    permutation = FeistelPermutation(count, seed, 0)
    image = permutation(np.array([index], np.uint64))
    assert image[0] < count
    assert permutation.inverse(image)[0] == index


def test_the_permutation_never_changes():
    images = FeistelPermutation(9_672_101, seed=1337, epoch=2)(np.arange(5, dtype=np.uint64))
    assert images.tolist() == EXPECTED_IMAGES


def test_the_digest_of_windows_never_changes():
    windows = np.arange(3 * 5, dtype=np.uint16).reshape(3, 5)
    assert windows_digest(7, windows) == EXPECTED_DIGEST


def test_the_order_of_a_stream_never_changes(tmp_path):
    lengths = [1 + (7 * index) % 23 for index in range(2000)]
    shards = tiny_data_set(tmp_path / "data", lengths=lengths, val_fraction=0).split("train")
    pieces = [
        [piece.epoch, *(column.tolist() for column in (piece.documents, piece.offsets))]
        for piece in TrainingStream(shards, 1337).pieces(1000, 2 * shards.tokens)
    ]
    assert pieces[0][1][:5] == EXPECTED_DOCUMENTS
    assert fingerprint(pieces) == EXPECTED_ORDER


def test_seed_and_epoch_are_separate_inputs():
    indices = np.arange(1000, dtype=np.uint64)
    orders = {
        FeistelPermutation(1000, seed, epoch)(indices).tobytes()
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_the_permutation_looks_random():
    images = FeistelPermutation(100_000, 0, 0)(np.arange(100_000, dtype=np.uint64)).astype(float)
    assert abs(np.corrcoef(np.arange(100_000), images)[0, 1]) < 0.02
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.02


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_is_no_64_bit_word_is_an_error(seed):
    with pytest.raises(ValueError, match="2\\*\\*64"):
        FeistelPermutation(10, seed, 0)


def test_a_permutation_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        FeistelPermutation(0, 0, 0)


def test_each_document_comes_once_in_an_epoch(large):
    index = EpochIndex(large.lengths, seed=5, epoch=1)
    assert sorted(index.documents(0, large.documents).tolist()) == list(range(large.documents))


@given(start=st.integers(0, 20_000), count=st.integers(0, 9000), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_any_part_of_the_stream_equals_a_naive_reader(large, start, count, seed):
    expected = naive_stream(large, seed, 5)[start : start + count]
    assert np.array_equal(TrainingStream(large, seed).read(start, count), expected)


def test_every_token_but_the_first_is_a_target_exactly_once(shards):
    length = 37
    windows = read_windows(
        OneSource(TrainingStream(shards, 1)), 0, 2 * shards.tokens // length, length
    )
    targets = windows[:, 1:].reshape(-1)
    assert np.array_equal(targets, naive_stream(shards, 1, 3)[1 : 1 + len(targets)])
    assert np.array_equal(windows[:-1, -1], windows[1:, 0])


@given(
    first=st.integers(0, 300),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    length=st.integers(1, 99),
)
@settings(max_examples=40, deadline=None)
def test_windows_and_digest_do_not_depend_on_who_reads_them(shards, first, cuts, length):
    whole = read_windows(OneSource(TrainingStream(shards, 9)), first, 60, length)
    spans = list(pairwise([0, *sorted(cuts), 60]))
    parts = [
        read_windows(OneSource(TrainingStream(shards, 9)), first + a, b - a, length)
        for a, b in spans
    ]
    assert np.array_equal(np.concatenate(parts), whole)
    digests = [windows_digest(first + a, part) for (a, _), part in zip(spans, parts, strict=True)]
    assert sum(digests) % 2**64 == windows_digest(first, whole)


def test_a_changed_token_or_window_number_changes_the_digest(shards):
    windows = read_windows(OneSource(TrainingStream(shards, 0)), 0, 4, 16)
    changed = windows.copy()
    changed[2, 3] ^= 1
    digests = {windows_digest(0, windows), windows_digest(1, windows), windows_digest(0, changed)}
    assert len(digests) == 3


def random_lengths(documents, longest, seed):
    return np.random.default_rng(seed).integers(1, longest + 1, documents).tolist()


# Up to three blocks of documents, and few enough tokens that each has an id of its own.
LENGTHS = st.builds(random_lengths, st.integers(1, 3000), st.integers(1, 20), st.integers(0, 99))


class Positions(TokenShards):
    """Shards made from document lengths alone; the token at position p is p itself."""

    def __init__(self, lengths, token_dtype="<u2"):
        self.token_dtype = np.dtype(token_dtype)
        self.__dict__["lengths"] = np.array(lengths, np.uint32)
        self.documents, self.tokens = len(lengths), sum(lengths)

    def gather(self, starts, counts):
        pieces = zip(starts.tolist(), counts.tolist(), strict=True)
        return np.concatenate([np.arange(s, s + c, dtype=self.token_dtype) for s, c in pieces])


@given(
    lengths=LENGTHS,
    length=st.integers(1, 200),
    seed=SEEDS,
    epochs=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_token_is_a_target_once_an_epoch_for_any_documents(lengths, length, seed, epochs):
    shards = Positions(lengths)
    stream = TrainingStream(shards, seed)
    count = (epochs * shards.tokens - 1) // length
    targets = read_windows(OneSource(stream), 0, count, length)[:, 1:].reshape(-1)
    rest = stream.read(count * length + 1, epochs * shards.tokens - count * length - 1)
    times = np.bincount(np.concatenate([targets, rest]), minlength=shards.tokens)
    times[stream.read(0, 1)] += 1  # the stream's very first token
    assert (times == epochs).all()


@given(lengths=LENGTHS, seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_every_document_comes_once_an_epoch_and_complete(lengths, seed):
    shards = Positions(lengths)
    for epoch in range(2):
        pieces = [*TrainingStream(shards, seed).pieces(epoch * shards.tokens, shards.tokens)]
        ids = np.concatenate([piece.documents for piece in pieces])
        assert np.array_equal(np.sort(ids), np.arange(len(lengths)))
        counts = np.concatenate([piece.counts for piece in pieces])
        assert np.array_equal(counts, shards.lengths[ids])
        assert {piece.epoch for piece in pieces} == {epoch}


@given(lengths=LENGTHS, seed=SEEDS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_document_is_where_the_inverse_says(lengths, seed, data):
    shards = Positions(lengths)
    document = data.draw(st.integers(0, len(lengths) - 1))
    epoch = data.draw(st.integers(0, 5))
    stream = TrainingStream(shards, seed)
    start = epoch * shards.tokens + stream.index(epoch).position_of(document)
    (piece,) = stream.pieces(start, lengths[document])
    assert (piece.documents.tolist(), piece.offsets.tolist()) == ([document], [0])


def test_a_negative_position_is_an_error(shards):
    with pytest.raises(ValueError, match="start=-1"):
        TrainingStream(shards, 0).read(-1, 2)


def test_epochs_have_different_orders(shards):
    stream = TrainingStream(shards, 0)
    first, second = stream.read(0, shards.tokens), stream.read(shards.tokens, shards.tokens)
    assert not np.array_equal(first, second)
    assert np.array_equal(np.sort(first), np.sort(second))


def test_a_single_document_is_its_own_stream(tmp_path):
    shards = tiny_data_set(tmp_path / "data", lengths=[7], val_fraction=0).split("train")
    stream = TrainingStream(shards, 0).read(0, 21).reshape(3, 7)
    assert (stream == shards.read_document(0)).all()


def test_threads_read_the_same(large):
    stream, expected = TrainingStream(large, 0), naive_stream(large, 0, 2)
    starts = range(0, large.tokens, 97)
    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(lambda start: stream.read(start, 97), starts))
    assert np.array_equal(np.concatenate(parts), expected[: 97 * len(parts)])
