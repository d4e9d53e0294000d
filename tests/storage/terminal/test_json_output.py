"""`--json` means the same in every script: a file, or standard output with only JSON on it."""

import io
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from storage.script_options import parse_options
from storage.terminal.json_output import (
    STANDARD_OUTPUT,
    check_json_target,
    json_line,
    with_json_target,
    write_json_target,
)
from tests.launching import python
from tests.script_flags import COMMANDS, SCRIPTS, flags_of


@dataclass(frozen=True)
class Options:
    json: Path | None = None
    text: tuple[str, ...] = ()


@dataclass(frozen=True)
class WithPositional(Options):
    folder: tyro.conf.Positional[Path] = Path()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--json", STANDARD_OUTPUT),
        ("--json -", STANDARD_OUTPUT),
        ("--json=-", STANDARD_OUTPUT),
        ("--json --text a", STANDARD_OUTPUT),
        ("--text a --json", STANDARD_OUTPUT),
        ("--json True", STANDARD_OUTPUT),
        ("--json=true", STANDARD_OUTPUT),
        ("--json a.json", Path("a.json")),
        ("--json=a.json --text b", Path("a.json")),
        ("--json - --json a.json", Path("a.json")),
        ("--json --no-json", None),
        ("--json False", None),
        ("--json=False", None),
        ("--text --", None),
        ("", None),
    ],
)
def test_every_spelling_of_json_has_one_meaning(words, wanted):
    assert parse_options(Options, words.split()).json == wanted


def test_a_folder_after_a_bare_json_is_the_positional_option(tmp_path):
    words = ["--json", str(tmp_path), "--text", "a"]
    found = parse_options(WithPositional, words)
    assert (found.json, found.folder) == (STANDARD_OUTPUT, tmp_path)
    assert parse_options(Options, words).json == tmp_path
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        check_json_target(tmp_path)


def test_words_after_two_hyphens_do_not_change():
    assert with_json_target(Options, ["--", "--json"], False) == ["--", "--json"]


def test_a_file_is_indented_and_standard_output_is_one_line(tmp_path, capsys):
    value = {"text": "é\x1b\x9b", "number": 1}
    for target in (None, tmp_path / "a.json", STANDARD_OUTPUT):
        check_json_target(target)
        write_json_target(target, value)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "\x1b" not in printed
    assert json.loads(printed) == json.loads((tmp_path / "a.json").read_text()) == value
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_standard_output_cannot_encode_is_escaped_as_json_has_it(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "latin-1"))
    assert json.loads(json_line("é😀").encode("latin-1")) == "é😀"


def test_log_messages_leave_standard_output_only_for_json_on_it(monkeypatch):
    handler = logging.StreamHandler(sys.stdout)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    parse_options(Options, ["--json", "a.json"])
    assert handler.stream is sys.stdout
    parse_options(Options, ["--json"])
    assert handler.stream is sys.stderr


def test_json_is_a_file_or_standard_output_in_every_script():
    flags = [
        flag
        for script in SCRIPTS
        for command in COMMANDS.get(script, ("",))
        for flag in flags_of(script, command)
    ]
    found = [flag for flag in flags if flag.name == "--json"]
    assert len(found) >= 7
    assert all(Path in flag.types and bool not in flag.types for flag in found)


def test_a_script_prints_json_alone_or_its_table(tmp_path):
    path = tmp_path / "cost.json"
    alone = python("model/cost.py", "demo", "--json", "-", "--gpus", "2")
    bare = python("model/cost.py", "demo", "--gpus", "2", "--json")
    both = python("model/cost.py", "demo", "--gpus", "2", "--json", str(path))
    assert json.loads(alone.stdout) == json.loads(bare.stdout) == json.loads(path.read_text())
    assert alone.stderr == both.stdout
