"""A mixture of data sets: each source's own windows, in the shares of the weights."""

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data_prep.dataset.manifest import read_manifest
from data_prep.order.training_data import open_again, open_training_data, recorded_places
from data_prep.order.weights import WeightStart
from data_prep.order.windows import read_windows, windows_digest
from tests.data_sets import small_tokenizer, tiny_data_set

T = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three data sets of different sizes with one tokenizer."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, documents, seed in (("a", 90, 1), ("b", 40, 2), ("c", 7, 3)):
        tiny_data_set(folder / name, documents, seed, tokenizer=small_tokenizer())
    return folder


def begun(step, window, *weights):
    return WeightStart(step, window, tuple(map(Fraction, weights)))


def mixture(folders, *weights):
    names = zip("abc", weights, strict=False)
    return open_training_data([Path(f"{folders / name}:{weight}") for name, weight in names])


def test_a_single_source_is_the_stream_of_its_data_set(folders):
    data = open_training_data([folders / "a"])
    stream = data.stream(7)
    tokens = stream.streams[0].read(0, 20 * T + 1)
    expected = np.stack([tokens[w * T : (w + 1) * T + 1] for w in range(20)])
    assert np.array_equal(read_windows(stream, 0, 20, T), expected)
    assert data.fingerprint == read_manifest(folders / "a").fingerprint


def test_each_source_gives_its_own_windows_one_after_the_other(folders):
    data = mixture(folders, 0.5, 0.3, 0.2)
    stream = data.stream(7, [begun(3, 41, 1, 2, 1)])
    whole = read_windows(stream, 0, 120, T)
    alone = [open_training_data([source.data.folder]).stream(7) for source in data.sources]
    own = [0, 0, 0]
    for window in range(120):
        (part,) = stream.by_source(window, 1)
        expected = read_windows(alone[part.source], own[part.source], 1, T)[0]
        assert np.array_equal(whole[window], expected)
        assert stream.window(part.source, own[part.source]) == window
        own[part.source] += 1
    assert stream.counts(120).tolist() == own
    assert stream.counts(40).tolist() == [20, 12, 8]


def test_any_range_of_windows_is_read_alike_and_digests_add_up(folders):
    stream = mixture(folders, 2, 1, 1).stream(3, [begun(1, 10, 0, 1, 1)])
    whole = read_windows(stream, 0, 40, T)
    spans = [(0, 1), (1, 9), (9, 12), (12, 12), (12, 40)]
    parts = [read_windows(stream, first, stop - first, T) for first, stop in spans]
    assert np.array_equal(np.concatenate(parts), whole)
    digests = [windows_digest(a, part) for (a, _), part in zip(spans, parts, strict=True)]
    assert sum(digests) % 2**64 == windows_digest(0, whole)


def test_every_document_of_a_source_is_seen_once_before_any_is_seen_twice(folders):
    data = mixture(folders, 1, 1, 2)
    stream, small = data.stream(5), data.sources[2]
    windows = 4 * (small.tokens // T) + 8
    seen = [
        (piece.epoch, int(document))
        for part in stream.by_source(0, windows)
        if part.source == 2
        for piece in part.stream.pieces(part.first * T, part.count * T)
        for document, offset in zip(piece.documents, piece.offsets, strict=True)
        if offset == 0
    ]
    first_epoch = [document for epoch, document in seen if epoch == 0]
    assert sorted(first_epoch) == list(range(small.manifest.train.documents))
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)
    assert max(epoch for epoch, _ in seen) >= 1  # it is small, so it repeats


def test_the_fingerprint_is_of_the_sources_and_their_shares(folders):
    one = mixture(folders, 0.5, 0.5)
    assert one.fingerprint == mixture(folders, 3, 3).fingerprint
    assert one.fingerprint != mixture(folders, 0.5, 0.4).fingerprint
    assert one.fingerprint != one.sources[0].data.fingerprint
    swapped = open_training_data([Path(f"{folders / name}:1") for name in "ba"])
    assert swapped.fingerprint != one.fingerprint


def test_what_a_run_records_opens_the_same_again_also_where_the_folders_are_elsewhere(folders):
    for weights in ((1, 65535), (0.25, 0.75), (99999, 1), (1, 2)):  # 1/65536 has 16 digits
        data = mixture(folders, *weights)
        recorded = recorded_places(data.recorded())
        assert open_again(recorded).fingerprint == data.fingerprint
    moved = shutil.copytree(folders, folders.with_name("moved"))
    again = open_again(recorded, [moved / "a", moved / "b"])
    assert (again.fingerprint, again.sources[1].data.folder) == (data.fingerprint, moved / "b")
    assert open_again(recorded, [moved / "a", Path(f"{moved / 'b'}:5")]).fingerprint == (
        data.fingerprint
    )
    with pytest.raises(ValueError, match="the run reads 2 data sets.*and 1 are named; name the"):
        open_again(recorded, [moved / "a"])


def test_names_are_the_last_parts_of_the_folders_that_set_them_apart(folders, tmp_path):
    assert [source.name for source in mixture(folders, 1, 1).sources] == ["a", "b"]
    other = tiny_data_set(tmp_path / "x" / "a", 20, 9, tokenizer=small_tokenizer()).folder
    data = open_training_data([Path(f"{folders / 'a'}:1"), Path(f"{other}:1")])
    assert [source.name for source in data.sources] == [f"{folders.name}/a", "x/a"]


def test_sources_that_do_not_fit_together_are_refused(folders, tmp_path):
    other = tiny_data_set(tmp_path / "gpt2", 20).folder
    with pytest.raises(ValueError, match=r"tokenizer .* \(300 ids\) and .*50,257 ids\); prepare"):
        open_training_data([Path(f"{folders / 'a'}:1"), Path(f"{other}:1")])
    copy = shutil.copytree(folders / "a", tmp_path / "copy")
    with pytest.raises(ValueError, match="copy is the same data set as .*a; name it once"):
        open_training_data([Path(f"{folders / 'a'}:1"), Path(f"{copy}:1")])
    empty = tmp_path / "none"
    with pytest.raises(ValueError, match=f"there is no data set at {empty}"):
        open_training_data([Path(f"{folders / 'a'}:1"), Path(f"{empty}:1")])


def test_copies_take_the_place_of_the_data_sets(folders):
    data = mixture(folders, 1, 2)
    copies = data.over(iter([source.data for source in data.sources]))
    assert copies == replace(data, sources=data.sources)
