"""The fault table: under each network fault, the same bytes or one clear error.

    python -m tests.data_prep.hub.test_faults

prints it as Markdown.
"""

import logging
import os
import re
import sys
import tempfile
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from data_prep.fineweb import FineWebOptions, prepare_fineweb
from data_prep.hub.download import Downloader
from data_prep.hub.retries import RetryPolicy
from data_prep.hub.supply import AHEAD
from data_prep.preparation.unit import UnitWork
from tests.data_prep.stories import folder_bytes
from tests.fake_hub import FakeHub, Fault
from tests.hub_fixtures import Maker

IMPATIENT = RetryPolicy(
    attempts=8,
    first_wait=0.02,
    max_wait=0.1,
    connect_seconds=0.5,
    read_seconds=0.4,
)
SAME = "same bytes"
# Each fault, and how the preparation ends. A download is two requests: a redirect, then the CDN.
FAULTS = [
    ("status:code=503,every=3", SAME),
    ("status:code=503,after=4,count=3", SAME),
    ("status:code=503", r"00._00000\.parquet cannot be fetched.*status 503; 8 attempts.*--source"),
    ("status:code=429,retry_after=0.3,every=3", SAME),
    ("status:code=504,path=cdn,every=2", SAME),
    ("status:code=404,path=001_", r"001_00000\.parquet is not on the Hub"),
    ("status:code=401,path=001_", r"001_00000\.parquet needs a login .*hf auth login"),
    ("status:code=403,path=cdn.*002_", r"002_00000\.parquet needs a login"),
    ("status:code=410,path=000_", r"000_00000\.parquet is refused by the Hub \(status 410"),
    ("drop:path=cdn,every=2", SAME),
    ("drop:path=cdn", r"000_00000\.parquet cannot be fetched .*8 attempts"),
    ("reset:path=cdn,every=2", SAME),
    ("reset:path=cdn,at=0", r"000_00000\.parquet cannot be fetched"),
    ("refuse:every=3", SAME),
    ("refuse", r"000_00000\.parquet cannot be fetched"),
    ("slow:seconds=0.1", SAME),
    ("slow:seconds=2,path=cdn,every=3", SAME),
    ("slow:seconds=2", r"000_00000\.parquet cannot be fetched .*(timed out|Timeout)"),
    ("throttle:rate=400000", SAME),
    ("stall:path=cdn,seconds=2,every=3", SAME),
    ("truncate:path=cdn,bytes=99,every=2", SAME),
    ("truncate:path=cdn", r"000_00000\.parquet cannot be fetched .*bytes came of"),
    ("truncate:path=cdn,after=6", r"00._00000\.parquet cannot be fetched .*ended at byte"),
    ("corrupt:path=cdn,every=4", SAME),
    ("corrupt:path=cdn", r"000_00000\.parquet cannot be fetched .*readings of it differ"),
    ("corrupt:path=cdn,after=6", r"arrived 3 times with another sha256 .*nothing of it was used"),
    ("norange", SAME),
    ("norange drop:path=cdn,every=2", SAME),
    ("norange corrupt:path=cdn,every=3", SAME),
    ("status:on=api,code=503,every=2", SAME),
    (
        "status:on=api,code=500",
        r"fineweb-edu at revision=main cannot be fetched .*500; 3 att",
    ),
    ("status:on=api,code=401", r"fineweb-edu needs a login"),
    ("refuse:on=api,every=2", SAME),
    ("slow:on=api,seconds=2,every=2", SAME),
    ("status:on=all,code=502,prob=0.1 reset:path=cdn,prob=0.1 corrupt:path=cdn,prob=0.05", SAME),
]


def options(out: Path, **more) -> FineWebOptions:
    more = {"revision": "main", "workers": 1, "shard_tokens": 4000, "encoder": "tiktoken", **more}
    return FineWebOptions(out=out, **more)


def prepare_under(hub: FakeHub, out: Path, faults: str, **more) -> str:
    """Prepare under the faults; returns the error, or "" if there was none."""
    hub.faults.replace([Fault.parse(text) for text in faults.split()])
    try:
        prepare_fineweb(options(out, **more), Downloader(hub.url, IMPATIENT))
    except ValueError as error:
        return str(error)
    finally:
        hub.faults.replace([])
    return ""


def make_hub(root: Path) -> FakeHub:
    Maker(root, seed=0).fineweb_edu(docs=45, files=3, row_group=5)
    return FakeHub(root)


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with make_hub(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert prepare_under(hub, out, "") == ""
    return folder_bytes(out)


@pytest.mark.fault("D5", injected="35 ways in which a Hub fails", identical=True)
@pytest.mark.parametrize(("faults", "end"), FAULTS, ids=[faults for faults, _ in FAULTS])
def test_a_fault_ends_in_the_same_bytes_or_in_one_clear_error(
    hub, undisturbed, tmp_path, faults, end
):
    out = tmp_path / "out"
    error = prepare_under(hub, out, faults)
    if end == SAME:
        assert error == ""
    else:
        assert re.search(end, error), error
        assert "\n" not in error
        assert not out.exists()
        assert prepare_under(hub, out, "") == ""  # the same again, without the fault
    assert folder_bytes(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def bodies(hub: FakeHub) -> list[dict]:
    return [record for record in hub.requests if record["path"].startswith("/cdn/")]


def test_a_reset_download_continues_where_it_ended(hub, tmp_path):
    hub.reset()
    assert prepare_under(hub, tmp_path / "out", "reset:path=cdn,after=2,count=1") == ""
    whole = sum(len(path.read_bytes()) for path in hub.repos.root.rglob("10BT/*.parquet"))
    footers = sum(record["bytes"] for record in bodies(hub) if record["range"]) - whole
    assert sum(record["bytes"] for record in bodies(hub)) < whole + footers + 200_000


def test_a_resumed_preparation_fetches_no_finished_file_again(hub, tmp_path):
    out = tmp_path / "out"
    assert "002_" in prepare_under(hub, out, "status:code=404,path=cdn.*002_,after=2")
    assert len(list(tmp_path.glob("out.partial/units/*/unit.json"))) >= 3
    hub.reset()
    assert prepare_under(hub, out, "") == ""
    assert not any("/000_00000" in record["path"] for record in hub.requests)


def test_sources_are_deleted_unless_keep_source_is_set(hub, tmp_path):
    assert prepare_under(hub, tmp_path / "out", "", keep_source=True) == ""
    kept = sorted(path.name for path in (tmp_path / "out.source").rglob("*") if path.is_file())
    assert kept == ["000_00000.parquet", "001_00000.parquet", "002_00000.parquet"]


def test_at_most_two_files_are_downloaded_ahead_of_the_work(tmp_path, monkeypatch):
    Maker(tmp_path / "hub", seed=0).fineweb_edu(docs=60, files=6, row_group=5)
    source = tmp_path / "data" / "out.source" / "sample"
    downloaded = []
    real = UnitWork.run

    def look(*words):
        time.sleep(0.1)
        downloaded.append(len(list(source.rglob("0*.parquet"))))
        return real(*words)

    monkeypatch.setattr(UnitWork, "run", look)
    with FakeHub(tmp_path / "hub") as six_files:
        assert prepare_under(six_files, tmp_path / "data" / "out", "") == ""
    assert max(downloaded) == 1 + AHEAD


def test_too_little_disk_space_is_reported_before_the_first_download(hub, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    hub.reset()
    error = prepare_under(hub, tmp_path / "out", "")
    assert "MB free, but about" in error
    assert "for source files at a time; make room" in error
    assert not any(record["status"] == 200 for record in bodies(hub))


def test_parts_and_a_merge_give_the_bytes_of_one_run(hub, undisturbed, tmp_path):
    out = tmp_path / "out"
    for part in ("3/3", "1/3"):
        assert prepare_under(hub, out, "", part=part) == ""
    error = prepare_under(hub, out, "", merge=True)
    assert error.startswith("part 2/3: ")
    assert "--merge" in error
    assert prepare_under(hub, out, "", part="2/3") == ""
    assert prepare_under(hub, out, "", merge=True) == ""
    assert folder_bytes(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_repository_is_reported_after_one_request(tmp_path):
    (tmp_path / "hub").mkdir()
    with FakeHub(tmp_path / "hub") as empty:
        error = prepare_under(empty, tmp_path / "out", "")
        deadline = time.monotonic() + 5  # the hub counts a request after it has answered
        while empty.stats()["requests"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert empty.stats()["requests"] == 1
    assert "fineweb-edu is not on the Hub or needs a login (`hf auth login`)" in error
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def main() -> None:
    """Print the table."""
    logging.disable(logging.CRITICAL)
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):  # progress bars
        print_table()


def print_table() -> None:
    """Print one row for each fault."""
    sys.stdout.write("| fault | result | seconds |\n| --- | --- | --- |\n")
    with tempfile.TemporaryDirectory() as folder, make_hub(Path(folder) / "hub") as hub:
        prepare_under(hub, Path(folder) / "undisturbed", "")
        expected = folder_bytes(Path(folder) / "undisturbed")
        for number, (faults, _) in enumerate(FAULTS):
            out = Path(folder) / str(number)
            start = time.monotonic()
            error = prepare_under(hub, out, faults)
            seconds = time.monotonic() - start
            same = not error and folder_bytes(out) == expected
            result = f"error: {error}" if error else SAME if same else "WRONG BYTES"
            sys.stdout.write(f"| `{faults}` | {result} | {seconds:.1f} |\n")


if __name__ == "__main__":
    main()
