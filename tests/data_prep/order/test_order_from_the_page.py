"""The order of training, implemented again from ARCHITECTURE.md alone, equals the real one."""

import hashlib
import json
import math
from fractions import Fraction
from itertools import count, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.order.permutation import FeistelPermutation, round_keys
from data_prep.order.shares import Assignment, WeightStretch, in_windows
from data_prep.order.skipped_windows import after_skips
from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource, read_windows, windows_digest
from parallel.ranks import Ranks
from tests.data_prep.order.test_skipped_windows import RANGES
from tests.data_prep.order.test_training_stream import Positions
from tests.data_sets import tiny_data_set
from tests.launching import REPO
from tests.runs import lines, run_to_end, tiny_config
from train.batch_plan import BatchPlan
from train.loader import Loader

PAGE = REPO / "ARCHITECTURE.md"
WORDS = st.integers(0, 2**64 - 1)

# --- from here to the next line like this one: written from the page alone, without the code ---

A, B, C = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15


def mix(x):
    x = (x ^ x >> 30) * A % 2**64
    x = (x ^ x >> 27) * B % 2**64
    return x ^ x >> 31


def keys(seed, epoch):
    state = mix((seed + C) % 2**64)
    state = mix(((state ^ epoch) + C) % 2**64)
    return [mix((state + i * C) % 2**64) for i in range(1, 7)]


def scrambled(x, key, h):
    x = (x ^ key) * A % 2**64
    x = (x ^ x >> 32) * B % 2**64
    return (x ^ x >> 29) % 2**h


def permuted(x, n, keys):
    h = max(1, ((n - 1).bit_length() + 1) // 2)
    left, right = divmod(x, 2**h)
    for key in keys:
        left, right = right, left ^ scrambled(right, key, h)
    x = left * 2**h + right
    return x if x < n else permuted(x, n, keys)


def place_of(x, n, keys):
    h = max(1, ((n - 1).bit_length() + 1) // 2)
    left, right = divmod(x, 2**h)
    for key in reversed(keys):
        left, right = right ^ scrambled(left, key, h), left
    x = left * 2**h + right
    return x if x < n else place_of(x, n, keys)


def stream(documents, seed):
    for epoch in count():
        for place in range(len(documents)):
            yield from documents[permuted(place, len(documents), keys(seed, epoch))]


def window(documents, seed, length, w):
    return list(islice(stream(documents, seed), w * length, w * length + length + 1))


def first_window(cursor, size, skips):
    return next(f for f in count(cursor) if all(f + size <= a or b <= f for a, b in skips))


def windows_of_rank(first, size, micro_batch, rank, world):
    return [first + j for j in range(size) if j // micro_batch % world == rank]


def digest(w, tokens, size=2):
    text = w.to_bytes(8, "little") + b"".join(t.to_bytes(size, "little") for t in tokens)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


# --- the comparison ----------------------------------------------------------------------------


@given(n=st.integers(1, 2**40), seed=WORDS, epoch=WORDS, data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_place_and_its_document_are_those_of_the_page(n, seed, epoch, data):
    place = data.draw(st.integers(0, n - 1))
    permutation, made = FeistelPermutation(n, seed, epoch), keys(seed, epoch)
    assert permutation(np.array([place])).tolist() == [permuted(place, n, made)]
    assert permutation.inverse(np.array([place])).tolist() == [place_of(place, n, made)]


@given(n=st.integers(1, 70), seed=WORDS, epoch=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_whole_small_permutations_are_those_of_the_page(n, seed, epoch):
    images = FeistelPermutation(n, seed, epoch)(np.arange(n)).tolist()
    assert images == [permuted(place, n, keys(seed, epoch)) for place in range(n)]
    assert [place_of(image, n, keys(seed, epoch)) for image in images] == list(range(n))


def documents_on_disk(folder):
    """Documents of the train split as the page says: the manifest's order, cut by lengths."""
    manifest = json.loads((folder / "manifest.json").read_text())
    found = []
    for name in (shard["name"] for shard in manifest["train"]["shards"]):
        tokens = iter(np.load(folder / f"{name}.npy").tolist())
        lengths = np.load(folder / f"{name}.lengths.npy").tolist()
        found += [list(islice(tokens, length)) for length in lengths]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "data"
    return tiny_data_set(folder, documents=25, shards=3, mean_length=20)


@given(seed=WORDS, length=st.integers(1, 50), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_windows_of_several_epochs_and_their_digests_are_those_of_the_page(
    data, seed, length, share
):
    train, documents = data.split("train"), documents_on_disk(data.folder)
    w = int(share * 4 * train.tokens / length)
    found = read_windows(OneSource(TrainingStream(train, seed)), w, 2, length)
    expected = [window(documents, seed, length, v) for v in (w, w + 1)]
    assert found.tolist() == expected
    total = sum(digest(v, tokens) for v, tokens in enumerate(expected, start=w))
    assert windows_digest(w, found) == total % 2**64


def test_the_digest_of_ids_of_a_large_vocabulary_is_that_of_the_page():
    windows = np.array([[70_000, 3, 65_535], [65_536, 0, 100_000]], np.uint32)
    expected = [digest(w, tokens, size=4) for w, tokens in enumerate(windows.tolist(), start=9)]
    assert windows_digest(9, windows) == sum(expected) % 2**64


@given(cursor=st.integers(0, 90), size=st.integers(1, 12), skips=RANGES)
@settings(deadline=None)
def test_a_step_begins_where_the_page_says(cursor, size, skips):
    assert after_skips(cursor, size, skips) == first_window(cursor, size, skips)


def shares(stream, plan, skips):
    """What the real loaders of all ranks return in the first two steps."""
    world = plan.world_size
    loaders = [
        Loader(stream, plan, Ranks(r, world, r, world, torch.device("cpu")), 0, skips)
        for r in range(world)
    ]
    found = [[loader.next_step() for loader in loaders] for _ in range(2)]
    for loader in loaders:
        loader.close()
    return found


@pytest.mark.parametrize(("micro_batch", "world"), [(1, 1), (2, 3), (4, 3), (3, 4), (6, 2)])
def test_each_rank_gets_the_windows_that_the_page_says(data, micro_batch, world):
    documents, skips, cursor = documents_on_disk(data.folder), ((5, 14), (30, 31)), 0
    stream = OneSource(TrainingStream(data.split("train"), 2))
    for step in shares(stream, BatchPlan(8, 12, micro_batch, world), skips):
        first = first_window(cursor, 12, skips)
        for rank, share in enumerate(step):
            numbers = windows_of_rank(first, 12, micro_batch, rank, world)
            expected = [window(documents, 2, 8, w) for w in numbers]
            assert share.windows.numpy().view(np.uint16).tolist() == expected
        cursor = first + 12


def test_the_lines_of_a_run_are_those_of_the_page(data, tmp_path):
    config = tiny_config(
        data.folder, tmp_path / "run", skip_windows=("20:41", "3:5"), seed=2**64 - 1
    )
    run_to_end(config)
    documents, cursor = documents_on_disk(data.folder), 0
    for line in lines(config.out)[:-1]:
        first = first_window(cursor, 8, [(3, 5), (20, 41)])
        cursor = first + 8
        total = sum(digest(w, window(documents, 2**64 - 1, 16, w)) for w in range(first, cursor))
        assert (line["data/first_window"], line["data/windows"]) == (first, 8)
        assert line["data/digest"] == f"{total % 2**64:016x}"


def turns(weights, windows):
    """The source of each window of a mixture, by the page."""
    D, S, had, found = sum(weights), sum(n > 0 for n in weights), [0] * len(weights), []
    for window in range(windows):
        w = window % D + 1
        had = had if w > 1 else [0] * len(weights)
        d = [w * n - D * c for n, c in zip(weights, had, strict=True)]
        wait = {
            i: math.ceil(Fraction(D * (2 * S - 3) - (2 * S - 2) * d[i], (2 * S - 2) * n))
            for i, n in enumerate(weights)
            if n and S > 1 and (2 * S - 2) * d[i] >= D
        }
        found.append(min(wait, key=wait.__getitem__) if S > 1 else weights.index(max(weights)))
        had[found[-1]] += 1
    return found


@given(weights=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any))
@settings(max_examples=100)
def test_the_turns_of_sources_are_those_of_the_page(weights):
    whole = in_windows([Fraction(weight) for weight in weights])
    windows = 2 * sum(whole) + 3
    found = Assignment([WeightStretch(0, whole)]).sources(0, windows)
    assert found.tolist() == turns(list(whole), windows)


def written_by_the_real_code():
    """The lines of the page's worked example."""

    def row(name, values):
        return f"{name}: {' '.join(map(str, values))}"

    def images(n, epoch):
        return FeistelPermutation(n, 1337, epoch)(np.arange(min(n, 16)))

    yield row("seed", [1337])
    for epoch in (0, 1):
        yield row(f"keys, epoch {epoch}", [f"{key:016x}" for key in round_keys(1337, epoch)])
    for n, epoch in [(16, 0), (10, 0), (10, 1), (5, 0), (5, 1), (5, 2)]:
        yield row(f"p of 0 to {n - 1}, N = {n}, epoch {epoch}", images(n, epoch))
    yield row("p of 0 to 4, N = 9672101, epoch 2", images(9_672_101, 2)[:5])
    shards = Positions([3, 1, 4, 2, 5])
    yield row("lengths", shards.lengths)
    stream = OneSource(TrainingStream(shards, 1337))
    for w, tokens in enumerate(read_windows(stream, 0, 8, 4)):
        yield row(f"window {w}", tokens)
        yield row(f"digest of window {w}", [f"{windows_digest(w, tokens[None]):016x}"])
    for number, step in enumerate(shares(stream, BatchPlan(4, 4, 1, 2), ((5, 6),))):
        yield row(f"step {number}, first window", [step[0].first_window])
        yield row(f"step {number}, sums of rank 0 and 1", [f"{s.digest:016x}" for s in step])
        yield row(f"step {number}, data/digest", [f"{sum(s.digest for s in step) % 2**64:016x}"])


def test_the_worked_example_of_the_page_is_what_the_real_code_gives():
    _, block = PAGE.read_text(encoding="utf-8").split("```text\nworked example\n")
    assert block.partition("\n```")[0].splitlines() == list(written_by_the_real_code())
