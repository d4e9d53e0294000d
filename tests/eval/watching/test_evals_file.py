"""evals.jsonl: which tasks are still to measure, and lines that are torn, old or damaged."""

import pytest

from eval.subject import EvalOptions
from eval.watching.evals_file import EvalsFile

LINE = '{"step": 4, "val/loss": 3.5, "tasks": "val_loss", "options": "", "weights": "a1"}\n'
BOTH = ("val_loss", "lambada")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evals.jsonl"


def opened(path, **options):
    """The file as the next watcher reads it."""
    file = EvalsFile(path, EvalOptions(**options))
    file.close()
    return file


def test_a_task_is_measured_once_for_each_step_weights_and_options(path):
    file = EvalsFile(path, EvalOptions())
    file.add(4, "a1", ["val_loss"], {"val/loss": 3.5})
    file.close()
    assert path.read_text() == LINE
    for again in (file, opened(path)):
        assert again.not_measured(4, "a1", BOTH) == ("lambada",)
        assert again.not_measured(4, "b2", BOTH) == BOTH
        assert again.not_measured(8, "a1", BOTH) == BOTH
        assert again.has_other_weights(4, "b2")
        assert not again.has_other_weights(4, "a1")
        assert not again.has_other_weights(8, "b2")
    assert opened(path, items=2).not_measured(4, "a1", BOTH) == BOTH


def test_a_line_without_a_digest_counts_for_any_weights(path):
    path.write_text(LINE.replace(', "weights": "a1"', ""))
    assert opened(path).not_measured(4, "b2", BOTH) == ("lambada",)
    assert not opened(path).has_other_weights(4, "b2")


def test_a_torn_last_line_is_dropped_and_measured_again(path, caplog):
    path.write_text(LINE + LINE.replace("4", "8")[:-20])
    file = opened(path)
    assert file.not_measured(8, "a1", BOTH) == BOTH
    assert path.read_text() == LINE
    assert "the last line was cut short; it is dropped and measured again" in caplog.text


@pytest.mark.parametrize("bad", ['{"step": 4}', "[]", '{"step": 4, "tas', "\udcff", ""])
def test_a_line_that_is_not_an_evaluation_is_named(path, bad):
    path.write_bytes((LINE + bad + "\n").encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"evals\.jsonl line 2 is no evaluation"):
        opened(path)
    path.write_text(LINE)
    opened(path)  # a file that was refused is not left locked


def test_a_second_watcher_is_refused_until_the_first_has_closed_the_file(path):
    first = EvalsFile(path, EvalOptions())
    with pytest.raises(ValueError, match="written by another process that watches this run"):
        opened(path)
    first.close()
    opened(path)
