"""Every command of bench/GPU_TODO.md is understood by what it starts."""

import re
import shutil

import pytest

from bench.gpu.parts import CALLS
from tests.golden.make import CHECKPOINT, DATA
from tests.launching import REPO
from tests.page_commands import commands_of, read_by_its_parser, started

PAGE = "bench/GPU_TODO.md"
COMMANDS = commands_of(PAGE)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A folder with what the commands name."""
    made = tmp_path_factory.mktemp("named")
    (made / "gpu_kit" / "data").mkdir(parents=True)
    (made / "gpu_kit" / "data" / "manifest.json").touch()
    (made / "hellaswag_val.jsonl").touch()
    shutil.copytree(DATA, made / "data" / "prose")
    shutil.copytree(CHECKPOINT, made / "models" / "gpt2")
    return made


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_list_is_understood(words, named, monkeypatch):
    monkeypatch.chdir(named)
    script, rest = started(words)
    if words[0] == "torchrun":
        assert "--standalone" in words
    if script == "bench/gpu/start.sh":
        script, rest = "bench/gpu/measure.py", ["--kit", *rest]
    if "--out" in rest and script == "bench/gpu/prepare.py":
        rest[rest.index("--out") + 1] = "another_kit"
    assert (REPO / script).is_file()
    read_by_its_parser(script, rest, monkeypatch)


def test_the_list_names_every_part_with_its_limit():
    page = (REPO / PAGE).read_text()
    listed = {
        name: int(limit)
        for names, limit in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\d+) s", page, re.MULTILINE)
        for name in re.findall(r"\w+", names)
    }
    assert listed == {part.name: part.seconds for call in CALLS.values() for part in call}
