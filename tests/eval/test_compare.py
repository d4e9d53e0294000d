"""Paired tests of two results, compared with enumeration and with a second formula."""

import json
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from eval.compare import Arguments, bootstrap_interval, compare, mcnemar
from eval.result import ItemTable, item_ids, load_items
from tests.launching import python


def table(right: np.ndarray, texts: list[str] | None = None) -> ItemTable:
    count = len(right)
    losses = np.ones((count, 2))
    predictions = {"acc": np.where(right, 1, 0), "acc_norm": np.ones(count, int)}
    ids = item_ids(texts or list(range(count)))
    return ItemTable(ids, np.ones(count, int), losses, losses, predictions)


@pytest.fixture
def folders(tmp_path):
    random = np.random.default_rng(3)
    a = random.random(400) < 0.3
    b = a ^ (random.random(400) < 0.2)
    for name, right in (("a", a), ("b", b)):
        table(right).save(tmp_path / name / "toy.npz", "toy")
    return tmp_path


def test_mcnemar_equals_an_enumeration_of_all_outcomes():
    for b, c in product(range(5), range(5)):
        n = b + c
        throws = [sum(t) for t in product((0, 1), repeat=n)]
        extreme = sum(abs(2 * heads - n) >= abs(b - c) for heads in throws)
        assert mcnemar(b, c) == float(Fraction(extreme, 2**n))
    assert mcnemar(0, 0) == 1
    assert 0 < mcnemar(1800, 2200) < 1e-9


def test_a_table_of_items_is_read_back_unchanged(folders):
    before = table(np.arange(5) % 2 == 0)
    before.save(folders / "x.npz", "x")
    after = load_items(folders / "x.npz")
    assert after.predictions.keys() == before.predictions.keys()
    np.testing.assert_array_equal(after.ids, before.ids)
    np.testing.assert_array_equal(after.predictions["acc"], before.predictions["acc"])


def test_discordant_pairs_are_counted_and_the_interval_contains_the_difference(folders):
    acc, acc_norm = compare(Arguments(folders / "a", folders / "b"))
    a, b = (load_items(folders / x / "toy.npz").predictions["acc"] == 1 for x in "ab")
    assert (acc.only_a, acc.only_b) == ((a & ~b).sum(), (b & ~a).sum())
    assert acc.difference == pytest.approx(b.mean() - a.mean())
    assert acc.low < acc.difference < acc.high
    assert acc.p == mcnemar(acc.only_a, acc.only_b)
    assert (acc_norm.difference, acc_norm.low, acc_norm.high, acc_norm.p) == (0, 0, 0, 1)


def test_for_many_items_the_interval_is_that_of_a_normal_distribution():
    random = np.random.default_rng(1)
    difference = random.normal(0.1, 1, 2000)
    options = Arguments(None, None, resamples=4000)
    low, high = bootstrap_interval(difference, np.ones(2000), options)
    half = 1.96 * difference.std() / 2000**0.5
    assert low == pytest.approx(difference.mean() - half, abs=0.005)
    assert high == pytest.approx(difference.mean() + half, abs=0.005)


def test_losses_are_compared_per_word(tmp_path):
    ids, none = item_ids(["x", "y"]), np.zeros(2, int)
    for name, losses in (("a", [[30.0], [10.0]]), ("b", [[20.0], [10.0]])):
        ItemTable(ids, none, np.array(losses), np.array([[10], [30]])).save(
            tmp_path / f"{name}.npz", "wiki"
        )
    [found] = compare(Arguments(tmp_path / "a.npz", tmp_path / "b.npz"))
    assert (found.a, found.b, found.p) == (1.0, 0.75, None)


def test_other_items_and_results_without_a_common_task_are_refused(folders):
    table(np.ones(400, bool), [f"new {i}" for i in range(400)]).save(
        folders / "c" / "toy.npz", "toy"
    )
    table(np.ones(3, bool)).save(folders / "d" / "other.npz", "other")
    with pytest.raises(ValueError, match="of which 0 are the same"):
        compare(Arguments(folders / "a", folders / "c"))
    with pytest.raises(ValueError, match="have no task in common"):
        compare(Arguments(folders / "a", folders / "d"))
    with pytest.raises(ValueError, match=r"holds no \.npz file"):
        compare(Arguments(folders / "a", folders))
    (folders / "torn.npz").write_bytes((folders / "a" / "toy.npz").read_bytes()[:500])
    with pytest.raises(ValueError, match="holds no results of items"):
        load_items(folders / "torn.npz")


def test_the_script_prints_a_table_and_writes_the_same_numbers_every_time(folders):
    for name in ("1.json", "2.json"):
        command = [str(folders / "a"), str(folders / "b"), "--json", str(folders / name)]
        done = python("eval/compare.py", *command)
        assert done.returncode == 0, done.stderr
    assert "toy/acc_norm" in done.stdout
    assert (folders / "1.json").read_text() == (folders / "2.json").read_text()
    assert len(json.loads((folders / "1.json").read_text())["comparisons"]) == 2


def test_repeated_items_get_different_ids():
    assert len(set(item_ids(["same", "same", "other"]))) == 3
