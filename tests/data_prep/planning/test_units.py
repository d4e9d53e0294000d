"""Units: of even size, in order, and the same for files that did not change."""

import hashlib
import random

from hypothesis import given
from hypothesis import strategies as st

from data_prep.planning.file_plan import FilePlan
from data_prep.planning.units import cut
from data_prep.sources.file_source import Unit
from data_prep.sources.pieces import Piece

SHARD = 1000


def planned(tokens: int, piece: int = 50) -> FilePlan:
    """A file of so many documents of one token."""
    starts = range(0, tokens, piece)
    sizes = [min(piece, tokens - start) for start in starts]
    pieces = [Piece(s, s + size, size, size) for s, size in zip(starts, sizes, strict=True)]
    return FilePlan(tuple(pieces), 1.0, 4.0)


def units(sizes: dict[str, int]) -> list[Unit]:
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in sizes]
    return cut([planned(size) for size in sizes.values()], digests, SHARD)


def contents(sizes: dict[str, int]) -> set[tuple]:
    names = list(sizes)
    return {
        tuple((names[s.file], sizes[names[s.file]], s.start, s.stop) for s in unit.spans)
        for unit in units(sizes)
    }


@given(st.lists(st.integers(0, 5000), max_size=20))
def test_every_document_is_in_one_unit_in_order(sizes):
    named = {str(number): size for number, size in enumerate(sizes)}
    found = units(named)
    spans = [span for unit in found for span in unit.spans]
    order = [(s.file, row) for s in spans for row in range(s.first_row, s.first_row + s.rows)]
    assert order == [(file, row) for file, size in enumerate(sizes) for row in range(size)]
    assert [unit.first_document for unit in found] == [
        sum(unit.documents for unit in found[:number]) for number in range(len(found))
    ]
    assert all(
        unit.tokens == unit.documents and unit.text_bytes == 4 * unit.tokens for unit in found
    )
    assert all(unit.tokens <= 1.2 * SHARD for unit in found)


def test_a_large_file_is_cut_evenly_and_small_ones_are_joined():
    assert [u.tokens for u in units({"a": 3400})] == [850, 850, 850, 850]
    row_groups = cut([planned(6500, piece=650)], [""], SHARD)
    assert [u.tokens for u in row_groups] == [650] * 10
    joined = [u.tokens for u in units({str(n): 30 for n in range(200)})]
    assert min(joined[:-1]) >= 0.8 * SHARD
    assert max(joined) <= 1.2 * SHARD


def test_a_repaired_or_new_file_changes_few_units_of_small_files():
    sizes = {f"{n:04d}": random.Random(n).randint(5, 60) for n in range(3000)}
    before = contents(sizes)
    repaired = contents({**sizes, "0500": sizes["0500"] - 1})
    assert len(before - repaired) <= 3
    more = contents(dict(sorted([*sizes.items(), ("0500x", 40)])))
    assert len(before - more) < 25
    assert len(before) > 80


def test_a_new_or_changed_file_changes_no_unit_of_other_large_files():
    sizes = {"a": 5300, "b": 1700, "c": 900, "d": 12000}
    before = contents(sizes)
    assert {u for u in before if u[0][0] != "b"} <= contents({**sizes, "b": 1650})
    assert before <= contents({"0": 2000, **sizes, "e": 3000})
