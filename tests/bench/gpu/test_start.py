"""Tests of bench/gpu/start.sh: the kit's wheels first, then the measuring with its flags."""

import json
import subprocess
import sys

import pytest

from tests.bench.gpu.test_measure import kit  # noqa: F401
from tests.launching import ENVIRONMENT, REPO

START = REPO / "bench" / "gpu" / "start.sh"


def start(*words, **variables):
    return subprocess.run(
        [START, *words], env=ENVIRONMENT | variables, capture_output=True, text=True
    )


@pytest.fixture
def recording_python(tmp_path):
    """A program that writes its words and PYTHONPATH to its output, in place of Python."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$PYTHONPATH | $*"\n')
    program.chmod(0o755)
    return program


def test_wheels_are_installed_into_a_folder_that_the_measuring_finds(tmp_path, recording_python):
    (tmp_path / "kit" / "wheels").mkdir(parents=True)
    (tmp_path / "kit" / "wheels" / "a-1-py3-none-any.whl").touch()
    done = start(tmp_path / "kit", "--call", "2", PYTHON=str(recording_python))
    assert done.returncode == 0, done.stderr
    pip, measure = done.stdout.splitlines()
    assert "-m pip install" in pip
    assert pip.endswith("kit/wheels/a-1-py3-none-any.whl")
    assert "--no-index" in pip
    site = pip.partition("--target ")[2].split()[0]
    path, _, words = measure.partition(" | ")
    assert path.split(":")[:2] == [site, str(REPO)]
    assert words == f"{REPO}/bench/gpu/measure.py --kit {tmp_path}/kit --call 2"


def test_a_kit_without_wheels_needs_no_pip(tmp_path, recording_python):
    (tmp_path / "kit").mkdir()
    done = start(tmp_path / "kit", PYTHON=str(recording_python))
    assert (done.returncode, "pip" in done.stdout) == (0, False)


@pytest.mark.parametrize("words", [(), ("nowhere",)])
def test_without_a_kit_it_says_how_to_make_one(words):
    done = start(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no kit; make one with bench/gpu/prepare.py" in done.stderr


@pytest.mark.long
def test_a_call_runs_in_processes_of_its_own(kit, tmp_path):  # noqa: F811
    out, runs = tmp_path / "out", tmp_path / "runs"
    parts = ("--parts", "micro", "reference", "generate", "gpu_tests")
    words = ("--out", out, "--runs", runs, *parts, "--device", "cpu")
    done = start(kit, *words, PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((out / "gpu_1.json").read_text())
    assert [row["exit_code"] for row in report["parts"]] == [0, 0, 0, 0]
    assert report["parts"][0]["measured"]["machine"]["gpu"] == "cpu"
    assert report["parts"][3]["measured"]["skipped"] > 5
    assert "| tokens/s of the reference step |" in (out / "gpu_1.md").read_text()
