"""The fault matrix, and a pytest plugin that makes its table from the tests that passed.

    pytest --fault-table=faults.md          then: pytest -m long --fault-table=faults.md

A test that injects a fault says so, once for each fault:

    @pytest.mark.fault("P1", injected="SIGKILL of one rank of four", lost="0", identical=True)

`lost` is the number of steps that had to be done again, `identical` whether losses and weights were
compared bit for bit with an undisturbed run; either is left out where the test does not assert it.
Results of several invocations are merged in the JSON beside the page; the last one counts.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MATRIX = {
    "P1": "SIGKILL of one rank",
    "P2": "SIGKILL of all ranks at once",
    "P3": "SIGKILL of torchrun",
    "P4": "SIGTERM: to torchrun, to one rank, in an evaluation, in a save, before step 1",
    "P5": "SIGUSR1 or SIGUSR2, as SLURM warns",
    "P6": "a drain longer than the grace it has",
    "P7": "a rank that hangs or is stopped",
    "P8": "a rank slower than the others",
    "P9": "a rank that leaves with code 0, or raises",
    "P10": "a crash that repeats at the same step",
    "P11": "restarts while old addresses are in the store",
    "P12": "a preparing process out of memory",
    "P13": "two writers of one folder",
    "P14": "a soak of random kills",
    "H1": "two jobs on the same hosts",
    "H2": "a network that delays and loses packets",
    "H3": "a cable that is pulled and put in again",
    "H4": "a host that disappears",
    "H5": "an environment that contradicts itself",
    "S1": "killed at every phase of a save",
    "S2": "files cut short or missing",
    "S3": "one bit flipped anywhere",
    "S4": "disk full or quota reached at any byte",
    "S5": "free space too low before a save",
    "S6": "a folder read-only, failing or gone",
    "S7": "logs on a full disk",
    "S8": "metrics of steps that are done again",
    "S9": "a save longer than its interval",
    "S10": "an error in the background writer",
    "S11": "retention among broken checkpoints",
    "S12": "the same step saved again",
    "N1": "NaN or infinity on one rank",
    "N2": "a spike of loss or gradient",
    "N3": "replicas that differ by one bit",
    "N4": "wrong arithmetic, once",
    "N5": "random state, threads and compilation",
    "R1": "a resume at every step",
    "R2": "another number of ranks",
    "R3": "a batch that does not divide",
    "R4": "a changed configuration",
    "R5": "a checkpoint of another format version",
    "R6": "a finished run, an empty folder",
    "R7": "another version of torch",
    "R8": "another clock, host or folder",
    "D1": "token files of another form",
    "D2": "ids beyond the vocabulary",
    "D3": "a shard cut or replaced while it is read",
    "D4": "texts made to break the preparation",
    "D5": "a Hub that fails in every way",
    "D6": "a preparation killed",
    "D7": "two preparations at once",
    "D8": "impossible values on the command line",
    "D9": "damaged evaluation data, a failing evaluation",
    "D10": "data changed in place, size and time kept, between starts or while a run trains",
    "D11": "a store of a source by URL that fails",
}
NOT_INJECTED = {
    "N4": "no mode computes a step twice; wrong arithmetic on one rank is found as N3, and "
    "`train/replay.py` computes a suspicious step again",
}
FIELDS = {"injected", "lost", "identical"}


def faults_of(item: pytest.Item) -> Iterator[dict[str, object]]:
    """What a test injects. Raises: ValueError if a mark is not of the form above."""
    for mark in item.iter_markers("fault"):
        if len(mark.args) != 1 or mark.args[0] not in MATRIX:
            raise ValueError(f"{item.nodeid}: fault{mark.args} is none of {', '.join(MATRIX)}")
        if not {"injected"} <= mark.kwargs.keys() <= FIELDS:
            raise ValueError(f"{item.nodeid}: fault({mark.args[0]}) has {sorted(mark.kwargs)}")
        yield {"id": mark.args[0], **mark.kwargs}


def merge(known: list[dict], found: list[dict], root: Path = ROOT) -> list[dict]:
    """`found` in place of what is known of the same tests; in the order of the matrix.

    What is known of tests that `root` no longer has is dropped.
    """
    fresh = {(row["id"], row["test"]) for row in found}
    kept = [
        row
        for row in known
        if (row["id"], row["test"]) not in fresh and row["id"] in MATRIX and exists(row, root)
    ]
    order = list(MATRIX)
    return sorted([*kept, *found], key=lambda row: (order.index(row["id"]), row["test"]))


def exists(row: dict, root: Path) -> bool:
    """Whether the test of a row is still there."""
    file, *_, name = row["test"].split("::")
    path = root / file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return re.search(rf"^\s*def {name}\(", text, re.MULTILINE) is not None


def summed_up(outcomes: list[tuple[str, bool, dict]]) -> list[dict]:
    """One row for each fault of each test function: (node id, passed, fault) of all its cases."""
    rows: dict[tuple[str, str], dict] = {}
    for node, passed, fault in outcomes:
        test = node.split("[")[0]
        row = rows.setdefault((fault["id"], test), {**fault, "test": test, "cases": 0, "failed": 0})
        row["cases"] += 1
        row["failed"] += not passed
    return list(rows.values())


def as_page(rows: list[dict]) -> str:
    """The table in Markdown."""
    words = {True: "yes", False: "no", None: "-"}
    lines = [
        "| id | fault | injected | survived | steps lost | bit-identical | test |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cases = f" ({row['cases']} cases)" if row["cases"] > 1 else ""
        survived = f"**NO** ({row['failed']} of {row['cases']})" if row["failed"] else f"yes{cases}"
        test = f"`{row['test'].removeprefix('tests/')}`"
        lost, same = row.get("lost", "-"), words[row.get("identical")]
        name = MATRIX[row["id"]]
        lines.append(
            f"| {row['id']} | {name} | {row['injected']} | {survived} | {lost} | {same} | {test} |"
        )
    covered = {row["id"] for row in rows}
    for key, name in MATRIX.items():
        if key not in covered:
            reason = NOT_INJECTED.get(key, "not run yet")
            lines.append(f"| {key} | {name} | not injected: {reason} | - | - | - | - |")
    tests, failed = {row["test"] for row in rows}, {row["test"] for row in rows if row["failed"]}
    head = f"{len(tests)} tests inject {len(covered)} of {len(MATRIX)} faults; {len(failed)} fail."
    return "\n".join([head, "", *lines]) + "\n"


def write_table(page: Path, outcomes: list[tuple[str, bool, dict]]) -> None:
    """Merge what ran now into the table at `page` and the JSON beside it."""
    record = page.with_suffix(".json")
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    rows = merge(known, summed_up(outcomes))
    page.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page.write_text(as_page(rows), encoding="utf-8")


class FaultTable:
    """Collects what the marked tests came to; under xdist in the process that collects all."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.outcomes: list[tuple[str, bool, dict]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that ran, or whose preparation failed."""
        if report.when == "call" or report.failed:
            faults = [fault for name, fault in report.user_properties if name == "fault"]
            if not report.skipped:
                self.outcomes += [(report.nodeid, report.passed, fault) for fault in faults]

    def pytest_sessionfinish(self) -> None:
        """Write the table."""
        write_table(self.page, self.outcomes)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="write the faults that were survived here")


def pytest_configure(config: pytest.Config) -> None:
    page = config.getoption("--fault-table")
    if page is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultTable(page))


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.user_properties += [("fault", fault) for fault in faults_of(item)]
