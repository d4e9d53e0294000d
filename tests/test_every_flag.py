"""Every flag of every script, from the parsers themselves, with values nobody means.

A value is taken, or refused in one sentence with exit code 2, and no file is left either way.
"""

import ast
import json
import re

import pytest

from tests.launching import python
from tests.script_flags import SCRIPTS
from tests.test_house import PRODUCT, ROOT, read_tree

# Of torchrun, srun, pip and other programs.
OF_OTHER_PROGRAMS = {"--nproc_per_node", "--ntasks-per-node", "--apply_chat_template", "--help"}
# These are read by train/command_line/parse.py and storage/script_options.py themselves.
OF_OTHER_PROGRAMS |= {"--optimizer", "--continue", "--config", "--help-all"}
OF_OTHER_PROGRAMS |= {"--resume"}  # of other trainers, to name ours


def wrong(result):
    """What is wrong with how a command line ended; None if nothing is."""
    text = result["stderr"]
    if result["code"] is None:
        return "it did not end"
    if "Traceback" in text:
        return f"a traceback: {text.strip().splitlines()[-1][:200]}"
    if result["code"] == 0:
        return None
    if result["new"]:
        return f"it left {result['new']}"
    if result["code"] != 2:
        return f"exit code {result['code']}: {text[-200:]}"
    sentence = text.strip()
    if not re.match(r"error: ", sentence):
        return f"no sentence: {sentence[:200]}"
    if len(sentence) > 600:
        return f"{len(sentence)} characters: {sentence[:200]}"
    if re.search(r"\w+\(\w+=|\[Errno", sentence):
        return f"words of Python: {sentence[:200]}"
    return None


def flags_in_errors():
    """Every flag that a sentence of an error names, with its place."""
    for source in read_tree(ROOT, PRODUCT):
        for node in source.nodes:
            if isinstance(node, ast.Raise) and node.exc is not None:
                for part in ast.walk(node.exc):
                    text = part.value if isinstance(part, ast.Constant) else ""
                    for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", str(text)):
                        yield flag, source.at(node, flag)


def test_every_flag_that_an_error_proposes_is_one_of_a_script():
    done = python("tests/programs/all_flags.py")
    assert done.returncode == 0, done.stderr
    known = set(json.loads(done.stdout.splitlines()[-1])) | OF_OTHER_PROGRAMS
    named = list(flags_in_errors())
    assert len(named) > 60
    bare = {flag.replace("--no-", "--").replace(".no-", ".") for flag in known} | known
    assert [where for flag, where in named if flag.replace("--no-", "--") not in bare] == []


def test_a_path_may_begin_with_the_home_folder_in_every_option_of_every_script(tmp_path):
    (tmp_path / "x").touch()
    done = python("tests/programs/home_paths.py", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 70
    assert {option: path for option, path in found.items() if path != str(tmp_path / "x")} == {}


@pytest.mark.parametrize("script", [s for s in SCRIPTS if not s.startswith("bench/")])
def test_no_value_of_any_flag_gives_a_traceback_or_leaves_a_file(script):
    done = python("tests/programs/absurd_values.py", typed=script)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    problems = [(r["words"], problem) for r in results if (problem := wrong(r))]
    assert not problems, f"{len(problems)} of {len(results)}:\n" + "\n".join(
        f"{' '.join(w[:80] for w in words)!r}: {problem}" for words, problem in problems
    )
