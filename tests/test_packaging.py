"""The project installs with pip and uv, on the Pythons and systems that it names."""

import re
import tomllib
from configparser import ConfigParser

import pytest
import yaml

from tests.launching import REPO

SETUP = ConfigParser()
SETUP.read(REPO / "setup.cfg", encoding="utf-8")
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What of setup.cfg has another name in pyproject.toml.
OTHER_NAMES = {
    "long_description": "readme",
    "long_description_content_type": "readme",
    "python_requires": "requires-python",
    "install_requires": "dependencies",
}
# What a Mac lacks: bash after 3.2, GNU's options, and make after 3.81.
NOT_ON_A_MAC = {
    "bash 4": r"\b(declare|local|typeset) -[a-z]*[Agln]|\b(mapfile|readarray|coproc)\b|&>>|\|&"
    r"|\$\{\w+(\[[^]]*\])?(\^|,|@[A-Za-z])|;;&|;&|\$EPOCH|\bwait -n|\[\[ -v|printf [^|;]*%\(",
    "GNU's options": r"\breadlink -[a-z]*f|\brealpath\b|\bsed -[a-z]*[irz]|\bgrep -[a-z]*[PzZ]"
    r"|\bdate -[a-z]*[dI]|\bstat -c|\bcp -[a-z]*[ut]\b|\bdu -[a-z]*b|\bhead -n -|\btac\b"
    r"|\btimeout \d|\bxargs -[a-z]*[rd]\b|\bsort -[a-z]*[VRh]\b|\bfind [^|;]*-printf|\bmktemp --"
    r"|\bls --|\bseq ",
    "make 4": r"^\.ONESHELL|^\S+ *!=|\$\(file |^[^:=\n]+&:|::=",
}


def test_setup_cfg_and_the_table_that_uv_reads_say_the_same():
    """Each field of setup.cfg is the same in pyproject.toml, or taken from setup.cfg."""
    written = {
        OTHER_NAMES.get(name, name): value
        for name, value in [*SETUP["metadata"].items(), *SETUP["options"].items()]
        if name not in ("packages", "include_package_data")  # of setuptools alone
    }
    assert SETUP.has_section("options.extras_require")
    written["optional-dependencies"] = ""
    static = {name: value for name, value in PROJECT.items() if name != "dynamic"}
    assert static == {name: written[name] for name in static}
    assert sorted(PROJECT["dynamic"]) == sorted(written.keys() - static.keys())


def test_the_workflow_runs_the_projects_own_checks_on_pythons_that_it_names():
    workflow = yaml.safe_load((REPO / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["checks"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    pythons = job["strategy"]["matrix"]["python"]
    assert len(pythons) >= 2
    for version in pythons:
        assert f"Programming Language :: Python :: {version}" in SETUP["metadata"]["classifiers"]


@pytest.mark.parametrize(
    "name", ["Makefile", "launch/node.sh", "launch/environment.sh", "launch/own_text.sh"]
)
def test_what_make_run_executes_needs_nothing_that_a_mac_lacks(name):
    assert lacking((REPO / name).read_text()) == []


def lacking(text: str) -> list[str]:
    """What of a script a Mac does not have. Comments do not count."""
    code = re.sub(r"(^|\s)#.*", "", text)
    return [
        f"{what}: {found.group()}"
        for what, pattern in NOT_ON_A_MAC.items()
        for found in re.finditer(pattern, code, re.MULTILINE)
    ]


@pytest.mark.parametrize(
    "line",
    [
        *("declare -A ages", "mapfile -t lines", 'echo "${name,,}"', "make x &>> log", "a |& b"),
        *("readlink -f x", "sed -i s/a/b/ x", "timeout 5 x", "grep -oP x", "date -d now"),
        *(".ONESHELL:", "CORES != nproc", "a b &: c"),
    ],
)
def test_what_a_mac_lacks_is_found(line):
    assert len(lacking(f"echo x\n{line}\n")) == 1
    assert lacking(f"# {line}\n") == []
