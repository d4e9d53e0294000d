"""The data scripts as processes: the Hub, exit codes, kills and interrupts."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bench.kill_prepare import KillOptions
from bench.kill_prepare import run as killed_and_compared
from data_prep.dataset.shards import check_data_set, open_data_set
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.sources.file_source import file_source
from tests.data_prep.stories import folder_bytes, story, write_lines
from tests.fake_hub import FakeHub, Fault
from tests.hub_fixtures import Maker
from tests.launching import REPO, python


def command(script: str, *words: object) -> list[str]:
    return [sys.executable, str(REPO / "data_prep" / script), *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPO), "PYTHONSAFEPATH": "1", **more}


def run(script: str, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return python(f"data_prep/{script}", *map(str, words), **{"HF_HUB_OFFLINE": "0"} | more)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    Maker(root, seed=0).fineweb_edu(docs=150, files=3, row_group=20)
    with FakeHub(root) as server:
        yield server


@pytest.fixture
def fineweb(hub, tmp_path):
    def start(*words: object) -> subprocess.CompletedProcess[str]:
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        words = ("--out", tmp_path / "out", "--workers", 1, *words)
        return run("fineweb.py", *words, **home, HF_HUB_DISABLE_TELEMETRY="1")

    return start


def test_fineweb_comes_from_the_hub_at_its_resolved_commit(fineweb, hub, tmp_path):
    done = fineweb("--revision", "main")
    assert done.returncode == 0, done.stderr
    data = open_data_set(tmp_path / "out")
    source = data.manifest.source
    assert data.manifest.train.documents + data.manifest.val.documents == 150
    assert source.id == "HuggingFaceFW/fineweb-edu/sample-10BT"
    assert len(source.revision) == 40
    assert [file.name for file in source.files] == [
        f"sample/10BT/00{n}_00000.parquet" for n in "012"
    ]
    assert "HTTP Request" not in done.stdout

    before = hub.stats()["requests"]
    again = fineweb("--revision", source.revision)
    assert (again.returncode, hub.stats()["requests"]) == (0, before)
    assert "complete already" in again.stdout


def test_the_same_files_from_a_folder_give_the_same_tokens(fineweb, tmp_path):
    assert fineweb("--revision", "main", "--keep-source").returncode == 0
    local = tmp_path / "local"
    done = run("fineweb.py", "--source", tmp_path / "out.source" / "sample", "--out", local)
    assert done.returncode == 0, done.stderr
    train = (tmp_path / "out" / "train_000000.npy").read_bytes()
    assert (local / "train_000000.npy").read_bytes() == train


@pytest.mark.parametrize(
    "faults",
    [
        "",
        pytest.param("status:code=503,every=9", marks=pytest.mark.long),
        pytest.param("drop:path=cdn,every=7", marks=pytest.mark.long),
    ],
)
def test_a_stream_makes_the_same_shards_and_its_manifest_names_it(fineweb, hub, tmp_path, faults):
    hub.faults.replace([Fault.parse(fault) for fault in faults.split()])
    done = fineweb("--revision", "main", "--stream", "--out", tmp_path / "streamed")
    hub.faults.replace([])
    assert done.returncode == 0, done.stderr
    assert fineweb("--revision", "main").returncode == 0
    files, streamed = (folder_bytes(tmp_path / name) for name in ("out", "streamed"))
    files.pop("manifest.json"), streamed.pop("manifest.json")
    assert files == streamed
    assert open_data_set(tmp_path / "streamed").manifest.settings["stream"] is True
    assert not (tmp_path / "streamed.source").exists()


def test_a_killed_download_continues_at_the_byte_it_had_reached(fineweb, hub, tmp_path):
    hub.faults.replace([Fault.parse("throttle:path=cdn,after=6,rate=60000")])
    words = command("fineweb.py", "--out", tmp_path / "out", "--revision", "main", "--workers", 1)
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(words, env=environment(**home), stderr=subprocess.DEVNULL)
    while not any(path.stat().st_size for path in tmp_path.rglob(".0*.parquet.partial")):
        time.sleep(0.005)
        assert process.poll() is None
    process.kill()
    process.wait()
    had = {path.stat().st_size for path in tmp_path.rglob(".0*.parquet.partial")}
    hub.faults.replace([])
    hub.reset()
    assert fineweb("--revision", "main").returncode == 0
    asked = {record["range"] for record in hub.requests}
    assert asked & {f"bytes={size}-" for size in had if size}
    check_data_set(open_data_set(tmp_path / "out"), "full")


def test_only_the_files_that_hold_the_wanted_documents_are_fetched(fineweb, tmp_path):
    done = fineweb("--revision", "main", "--max-documents", 60, "--split", "first")
    assert done.returncode == 0, done.stderr
    assert len(open_data_set(tmp_path / "out").manifest.source.files) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--revision", "main", "--config", "sample-9BT"], "which has sample-10BT, sample-100BT"),
        (["--revision", "nonsense"], "revision=nonsense of HuggingFaceFW/fineweb-edu is not on"),
        (["--source", "/nowhere/at/all"], "there is no /nowhere/at/all; give"),
    ],
)
def test_a_request_that_the_hub_cannot_serve_is_one_sentence_and_exit_code_2(
    fineweb, words, message
):
    done = fineweb(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_network_one_sentence_names_the_alternative(tmp_path):
    done = run("fineweb.py", "--out", tmp_path / "out", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "cannot be fetched from the Hub" in done.stderr
    assert "--source" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_any_text_becomes_a_data_set_with_a_summary(tmp_path):
    write_lines(tmp_path / "a.jsonl", [story(number) for number in range(200)])
    done = run("text.py", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--split", "first")
    assert done.returncode == 0, done.stderr
    assert "train  " in done.stdout
    assert "tokens/s" in done.stderr
    check_data_set(open_data_set(tmp_path / "out"), "full")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x"], "give either paths or --embedded"),
        (["--embedded", "a.txt"], "give either paths or --embedded"),
        (["a.txt"], "--out FOLDER"),
        (["a.txt", "--split", "middle"], "middle"),
        (["a.txt", "--shard-tokens", "0"], "shard_tokens=0 must be at least 1"),
        (["a.txt", "--no-such-flag"], "no-such-flag"),
    ],
)
def test_a_wrong_option_is_exit_code_2_without_a_traceback(tmp_path, words, message):
    (tmp_path / "a.txt").write_text("text")
    done = python("data_prep/text.py", *words, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_in_a_worker_process_is_one_sentence(tmp_path):
    write_lines(tmp_path / "a.jsonl", [*(story(number) for number in range(100)), 3])
    words = (tmp_path / "a.jsonl", "--out", tmp_path / "out", "--shard-tokens", 900, "--workers", 2)
    done = run("text.py", *words)
    assert done.returncode == 2
    assert "holds a number under 'text'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def interruptible() -> None:
    """Undo the ignored SIGINT of processes that a shell starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def long_source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    write_lines(folder / "a.jsonl", [story(number, 400) for number in range(3000)])
    options = PrepareOptions(workers=1, shard_tokens=60_000)
    data = prepare(file_source([str(folder / "a.jsonl")]), folder / "reference", options)
    assert len(data.manifest.train.shards) > 15
    return folder


@pytest.mark.fault("D6", injected="SIGKILL or SIGINT", identical=True)
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stopped_preparation_goes_on_to_the_same_bytes(tmp_path, long_source, sent, code):
    out = tmp_path / "out"
    words = (long_source / "a.jsonl", "--out", out, "--shard-tokens", 60_000, "--workers", 2)
    process = subprocess.Popen(
        command("text.py", *words),
        env=environment(),
        stderr=subprocess.DEVNULL,
        preexec_fn=interruptible,
    )
    units = tmp_path / "out.partial" / "units"
    while len(list(units.glob("[!.]*/unit.json"))) < 3:
        time.sleep(0.001)
        assert process.poll() is None
    process.send_signal(sent)
    assert process.wait(60) == code
    assert not out.exists()
    assert len(list(units.glob("[!.]*/unit.json"))) < 15
    resumed = run("text.py", *words[:-1], 1)
    assert "continuing: " in resumed.stdout
    assert folder_bytes(out) == folder_bytes(long_source / "reference")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.fault("D6", injected="3 SIGKILLs at random moments", identical=True)
@pytest.mark.long
def test_three_kills_at_random_moments_change_no_byte():
    options = KillOptions(kills=3, megabytes=3, files=3, shard_tokens=10_000, result=None)
    assert killed_and_compared(options)


def test_parts_in_parallel_processes_and_their_merge_are_the_bytes_of_one_run(
    tmp_path, long_source
):
    words = (long_source / "a.jsonl", "--out", tmp_path / "out", "--shard-tokens", 60_000)
    words = (*words, "--workers", 1)
    parts = [
        subprocess.Popen(
            command("text.py", *words, "--part", part),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for part in ("1/3", "2/3", "3/3")
    ]
    assert [part.wait(60) for part in parts] == [0, 0, 0]
    merged = run("text.py", *words, "--merge")
    assert merged.returncode == 0, merged.stderr
    assert folder_bytes(tmp_path / "out") == folder_bytes(long_source / "reference")


def test_a_name_too_long_for_the_file_system_is_one_sentence(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["one"])
    done = run("text.py", tmp_path / "a.jsonl", "--out", tmp_path / ("x" * 250))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "choose a shorter name" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_summary_says_how_many_files_were_read_and_passed_over(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["one"])
    (tmp_path / "notes.md").write_text("# Notes")
    done = run("text.py", tmp_path, "--out", tmp_path / "out", "--val-tokens", 0)
    assert done.returncode == 0, done.stderr
    assert "1 passed over (of no known kind): notes.md" in done.stdout
    assert "1 source file read, 1 passed over" in done.stdout


def test_local_files_are_prepared_without_the_libraries_of_stores_and_the_hub():
    loaded = "import sys, data_prep.text; print({'fsspec', 'huggingface_hub'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", loaded], env=environment(), capture_output=True, text=True
    )
    assert found.stdout == "set()\n"
