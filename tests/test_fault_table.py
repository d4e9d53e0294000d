"""Every fault of the matrix is injected by a test, or listed with the reason why not."""

import re
from pathlib import Path

from tests.fault_table import MATRIX, NOT_INJECTED, as_page, merge, summed_up, write_table

HERE = Path(__file__).parent
FAULT = {"id": "P1", "injected": "SIGKILL", "lost": "0", "identical": True}


def marked_ids():
    """The faults that tests are marked with, as their source says."""
    for path in HERE.rglob("test_*.py"):
        yield from re.findall(r'@pytest\.mark\.fault\(\s*"(\w+)"', path.read_text(encoding="utf-8"))


def test_every_fault_is_injected_or_listed_with_a_reason():
    assert set(marked_ids()) | set(NOT_INJECTED) == set(MATRIX)
    assert not set(marked_ids()) & set(NOT_INJECTED)


def test_all_cases_of_a_test_are_one_row_and_one_failure_is_seen():
    cases = [("t.py::a[1]", True, FAULT), ("t.py::a[2]", False, FAULT)]
    [row] = summed_up(cases)
    assert (row["test"], row["cases"], row["failed"]) == ("t.py::a", 2, 1)
    assert "| P1 | SIGKILL of one rank | SIGKILL | **NO** (1 of 2) | 0 | yes |" in as_page([row])


def test_a_later_invocation_adds_and_replaces(tmp_path):
    page = tmp_path / "faults.md"
    write_table(page, [("t.py::a", False, FAULT)])
    write_table(page, [("t.py::a", True, FAULT), ("t.py::b", True, FAULT | {"id": "S3"})])
    text = page.read_text()
    assert f"2 tests inject 2 of {len(MATRIX)} faults; 0 fail." in text
    assert "| S4 | disk full or quota reached at any byte | not injected: not run yet |" in text
    assert "NO" not in text


def test_rows_stand_in_the_order_of_the_matrix():
    rows = summed_up([("t.py::a", True, FAULT | {"id": key}) for key in ("D1", "P10", "P2")])
    assert [row["id"] for row in merge([], rows)] == ["P2", "P10", "D1"]


def test_a_test_that_injects_two_faults_is_counted_once():
    rows = summed_up([("t.py::a", True, FAULT | {"id": key}) for key in ("P1", "P2")])
    assert as_page(rows).startswith(f"1 tests inject 2 of {len(MATRIX)} faults; 0 fail.")


def test_a_test_that_is_gone_leaves_the_table(tmp_path):
    (tmp_path / "t.py").write_text("def a():\n    pass\n\n\ndef ab():\n    pass\n")
    names = ("t.py::a", "t.py::b", "gone.py::a")
    known = summed_up([(name, True, FAULT) for name in names])
    assert [row["test"] for row in merge(known, [], tmp_path)] == ["t.py::a"]
