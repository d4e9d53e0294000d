"""Output that nobody reads, or that a full disk does not take, changes nothing else."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from storage.retention import SaveConfig
from tests.launching import REPO, fresh_python, python
from tests.runs import final_bytes, flags, lines, nano_config, run_to_end

# A program that makes a descriptor useless and then runs the rest of its command line.
USELESS = """
import os, runpy, sys
def closed():
    reader, writer = os.pipe()
    os.close(reader)
    return writer
def full():
    return os.open("/dev/full", os.O_WRONLY)
how, numbers = sys.argv[1], sys.argv[2].split(",")
for number in map(int, numbers):
    os.dup2({"closed": closed, "full": full}[how](), number)
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
KINDS = ["closed", "full"]
STREAMS = ["1", "1,2"]


@pytest.mark.fault("S7", injected="standard output closed or full", lost="0", identical=True)
@pytest.mark.parametrize(("how", "numbers"), [("closed", "1"), ("full", "1,2")])
def test_a_run_whose_output_is_lost_ends_as_any_other(tmp_path, how, numbers):
    config = nano_config(tmp_path, steps=4, save=SaveConfig(2, 0))
    done = python("-c", USELESS, how, numbers, *flags(config))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((config.out / "status.json").read_text())["state"] == "finished"
    assert len(lines(config.out)) == 5
    straight = replace(config, out=tmp_path / "straight")
    run_to_end(straight)
    assert final_bytes(config.out) == final_bytes(straight.out)


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("numbers", STREAMS)
@pytest.mark.parametrize("words", [["model/cost.py", "gpt2"], ["data_prep/text.py", "--help"]])
def test_a_script_whose_output_is_lost_ends_without_an_error(how, numbers, words):
    done = python("-c", USELESS, how, numbers, *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mistake_keeps_its_exit_code_without_an_output():
    assert python("-c", USELESS, "closed", "1,2", "model/cost.py", "gpt9").returncode == 2


PROGRAM = """
import logging, os, sys
from storage.terminal.standard_output import tolerate_lost_output
for number in map(int, filter(None, sys.argv[1].split(","))):
    os.close(number)
{before}
tolerate_lost_output()
tolerate_lost_output()
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
for number in range(3):
    {between}
    logging.info("line %d", number)
sys.stderr.write("é on standard error\\n")
"""


def program(missing="", before="", between="pass"):
    """What a small program says and how a real interpreter ends."""
    return fresh_python("-c", PROGRAM.format(before=before, between=between), missing)


def test_other_output_is_as_it_was():
    done = program()
    assert (done.returncode, done.stdout) == (0, "line 0\nline 1\nline 2\n")
    assert done.stderr == "é on standard error\n"


@pytest.mark.parametrize("missing", ["0", "1", "2", "1,2", "0,1,2"])
def test_a_program_may_be_started_with_closed_streams(missing):
    done = program(missing)
    assert done.returncode == 0
    assert done.stderr == ("" if "2" in missing else "é on standard error\n")
    assert done.stdout == ("" if "1" in missing else "line 0\nline 1\nline 2\n")


@pytest.mark.parametrize("how", ["os.pipe()[1]", "os.open('/dev/full', os.O_WRONLY)"])
def test_the_interpreter_ends_with_code_0_if_its_output_is_lost(how):
    done = program(before=f"os.dup2({how}, 1)")
    assert (done.returncode, done.stderr) == (0, "é on standard error\n")


def test_what_a_full_disk_did_not_take_is_counted_when_it_has_room():
    done = program(
        before="kept = os.dup(1); full = os.open('/dev/full', os.O_WRONLY)",
        between="os.dup2(full if number == 1 else kept, 1)",
    )
    assert done.stdout == "line 0\n\n[7 bytes of output could not be written]\nline 2\n"


def test_a_terminal_that_another_program_made_non_blocking_gets_all():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = (
        "from storage.terminal.standard_output import tolerate_lost_output\n"
        "tolerate_lost_output()\n"
        "import sys; sys.stdout.write('x' * 1_000_000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=writer) as process:
        os.close(writer)
        with open(reader, "rb") as file:
            assert len(file.read()) == 1_000_000
    assert process.returncode == 0
