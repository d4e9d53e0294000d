"""Tests of bench/gpu/measure.py: every part at a toy size, and what is written when."""

import json
import lzma
import re
import time
from pathlib import Path

import pytest

from bench.gpu.measure import Arguments, measured_call, run_part
from bench.gpu.parts import CALLS
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.eval.test_calibrate import ROW
from tests.launching import REPO, python
from tests.page_commands import read_by_its_parser

PARTS = {part.name: part for call in CALLS.values() for part in call}


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """What prepare.py packs, small."""
    folder = tmp_path_factory.mktemp("gpu_kit")
    tiny_data_set(folder / "data", documents=100, tokenizer=small_tokenizer())
    items = "".join(json.dumps({**ROW, "label": n % 4}) + "\n" for n in range(8))
    (folder / "hellaswag_val.jsonl.xz").write_bytes(lzma.compress(items.encode()))
    return folder


def in_a_fork(words, variables, seconds, output):
    """The same as run_part, without the seconds of imports."""
    done = python(*words, **variables)
    with output.open("a") as file:
        file.write(done.stdout + done.stderr)
    return done.returncode


@pytest.mark.long
def test_every_part_runs_at_a_toy_size_and_finds_its_numbers(kit, tmp_path):
    names = [name for name in PARTS if name not in ("gpu_tests", "micro")]
    arguments = Arguments(
        kit, tmp_path / "out", tmp_path / "runs", parts=tuple(names), device="cpu"
    )
    report = measured_call(arguments, "cpu", in_a_fork)
    output = (tmp_path / "out" / "output_1.txt").read_text()
    assert [row["name"] for row in report["parts"]] == names
    for row in report["parts"]:
        assert row.get("exit_code") == 0, (row, output[-3000:])
        assert "left_out" not in row
        assert row["measured"], row
    rows = {row["name"]: row["measured"] for row in report["parts"]}
    assert rows["reference"]["last_step"] == 2
    assert rows["resume"]["last_step"] == 4
    assert rows["resume"]["steps_timed"] == 1
    assert rows["reference"]["trace"] == {"error": "profile_1_2.json.gz holds no kernel of a GPU"}
    assert "hellaswag/acc_norm" in rows["hellaswag"]
    assert rows["generate"]["tokens_per_second"] > 0
    assert json.loads((tmp_path / "out" / "gpu_1.json").read_text()) == report
    assert len(list((tmp_path / "out").iterdir())) <= 8


def call_of(kit, tmp_path, run, **changes):
    arguments = Arguments(kit, tmp_path / "out", tmp_path / "runs", **changes)
    return measured_call(arguments, "NVIDIA H200", run)


def never(*_):
    raise AssertionError("nothing is to be run")


def test_parts_without_time_or_checkpoint_or_items_are_left_out_with_the_reason(kit, tmp_path):
    report = call_of(kit, tmp_path, never, seconds=14, parts=("reference",))
    assert report["parts"][0]["left_out"] == "no time was left"
    report = call_of(kit, tmp_path, never, parts=("resume",))
    assert report["parts"][0]["left_out"] == "there is no checkpoint of reference"
    (tmp_path / "runs" / "reference" / "checkpoints" / "latest").mkdir(parents=True)
    (tmp_path / "empty" / "data").mkdir(parents=True)
    (tmp_path / "empty" / "data" / "manifest.json").touch()
    report = call_of(tmp_path / "empty", tmp_path, never, parts=("hellaswag",))
    assert report["parts"][0]["left_out"] == "the kit has no hellaswag_val.jsonl.xz"
    table = (tmp_path / "out" / "gpu_1.md").read_text()
    assert "- hellaswag: the kit has no" in table


def test_a_call_that_is_cut_off_keeps_what_was_measured(kit, tmp_path):
    def cut_off(words, *_):
        if "--fused-loss" in words:
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        call_of(kit, tmp_path, cut_off, parts=("micro_batch_32", "fused", "baseline"))
    report = json.loads((tmp_path / "out" / "gpu_1.json").read_text())
    first, second = report["parts"]
    assert (first["exit_code"], "left_out" in first) == (0, False)
    assert second["left_out"] == "the call ended while it ran"


def test_a_part_that_takes_too_long_ends_with_all_that_it_started(tmp_path):
    program = "import subprocess, time; subprocess.run(['sleep', '987654'])"
    code = run_part(["-c", program], {"WORD": "x"}, 0.5, tmp_path / "output.txt")
    assert code == 124
    until = time.monotonic() + 30  # a process that is killed may need a moment to be gone
    while still_running(b"987654"):
        assert time.monotonic() < until
        time.sleep(0.05)


def still_running(word):
    return any(word in p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if readable(p))


def readable(path):
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


def test_the_output_and_code_of_a_part_are_kept(tmp_path):
    program = "import os, sys; print(os.environ['WORD']); sys.exit(3)"
    output = tmp_path / "output.txt"
    assert [run_part(["-c", program], {"WORD": w}, 60, output) for w in "ab"] == [3, 3]
    assert output.read_text() == "a\nb\n"


@pytest.mark.parametrize("part", PARTS.values(), ids=lambda part: part.name)
def test_the_command_of_a_part_is_understood_at_its_full_size(part, kit, monkeypatch):
    folders = {"kit": str(kit), "runs": "runs", "out": "out"}
    script, *words = part.words(folders)
    if script == "-m":
        marked = {path.relative_to(REPO).as_posix() for path in files_marked_gpu()}
        assert marked <= {word for word in words if word.startswith("tests/")}
        assert part.seconds <= 90
    else:
        read_by_its_parser(script, words, monkeypatch)


def files_marked_gpu():
    """The files with tests that need a GPU."""
    marked = re.compile(r"^\s*@pytest\.mark\.gpu|^pytestmark = pytest\.mark\.gpu", re.MULTILINE)
    return [path for path in (REPO / "tests").rglob("test_*.py") if marked.search(path.read_text())]
