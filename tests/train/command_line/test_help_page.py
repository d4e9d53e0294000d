"""The first page of the help: one screen with the presets and the usual settings."""

import re

import pytest

from tests.runs import GOLDEN
from train.command_line.computed_presets import COMPUTED_PRESETS
from train.command_line.parse import parse
from train.presets import PRESETS


@pytest.fixture
def page(capsys, monkeypatch):
    """Returns the lines of a help."""

    def shown(*words, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            parse([*words])
        assert ended.value.code == 0
        return capsys.readouterr().out.splitlines()

    return shown


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_help_fits_the_terminal_and_names_every_preset_in_a_line(page, columns):
    found = page("--help", columns=columns)
    assert max(map(len, found)) <= columns
    assert columns < 80 or len(found) <= 50
    names = {line.split()[0] for line in found if re.match(r"  \w", line)}
    assert {*PRESETS, *COMPUTED_PRESETS} <= names
    assert "--help-all" in found[-1]


def test_the_settings_of_a_preset_or_run_are_its_defaults(page):
    assert any("900" in line and "--steps" in line for line in page("demo", "-h"))
    run = page("--continue", str(GOLDEN / "run"), "--help")
    assert any("--steps" in line and "(8)" in line for line in run)
    file = page("--seed=3", "gpt2-demo", "--help")
    assert any("--steps" in line and "(500)" in line for line in file)


def test_a_preset_whose_settings_are_not_known_yet_shows_none(page):
    text = "\n".join(page("finetune", "--help"))
    assert "runs/gpt2" not in text
    assert "--batch-tokens N" in text


def test_all_options_are_explained_on_the_second_page(page):
    text = "\n".join(page("demo", "--help-all"))
    assert "--guard.skip-spikes FLOAT" in text
    assert "--continue RUN: continue the run" in text
    assert "(default: 900)" in text
