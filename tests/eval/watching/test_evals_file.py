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


@pytest.mark.fault("D9", injected="a torn or damaged line of evals.jsonl")
@pytest.mark.parametrize(
    "bad",
    [
        '{"step": 4}',
        "[]",
        '{"step": 4, "tas',
        "\udcff",
        "",
        "\0" * 4096,
        "[" * 5000,
        *(
            '{{"step": {}, "tasks": {}, "options": {}, "weights": {}}}'.format(*values)
            for values in [
                ('"3"', '"a"', '""', '"b"'),
                ("1e400", '"a"', '""', '"b"'),
                ("true", '"a"', '""', '"b"'),
                ("3", "[]", '""', '"b"'),
                ("3", '"a"', "{}", '"b"'),
                ("3", '"a"', '""', "[1]"),
            ]
        ),
    ],
)
def test_a_damaged_line_is_skipped_with_a_warning_and_the_others_count(path, bad, caplog):
    other = LINE.replace("4", "8")
    path.write_bytes((LINE + bad + "\n" + other).encode("utf-8", "surrogateescape"))
    file = opened(path)
    assert file.not_measured(4, "a1", BOTH) == file.not_measured(8, "a1", BOTH) == ("lambada",)
    assert "line 2 is no evaluation and is skipped" in caplog.text


def test_the_first_line_after_a_torn_one_is_read_again(path):
    path.write_text(LINE + LINE.replace("4", "8")[:-20])
    file = EvalsFile(path, EvalOptions())
    assert file.not_measured(8, "a1", BOTH) == BOTH
    file.add(8, "a1", ["val_loss"], {"val/loss": 3.5})
    file.close()
    assert opened(path).not_measured(8, "a1", BOTH) == ("lambada",)


@pytest.mark.fault("S7", injected="a disk that is full for some evaluations")
@pytest.mark.parametrize("ends", [True, False])
def test_evaluations_of_an_outage_are_recorded_when_it_is_over(path, monkeypatch, ends):
    file = EvalsFile(path, EvalOptions())

    def full(file, value):
        file.write(b'{"ste')
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("storage.metrics.append_to", full)
        file.add(4, "a1", ["val_loss"], {"val/loss": 3.5})
        file.retry()
        assert opened_after_crash(path).not_measured(4, "a1", BOTH) == BOTH
        if not ends:
            with pytest.raises(ValueError, match=r"evals\.jsonl cannot be written, so the last"):
                file.close()
    if ends:
        file.retry()
        file.close()
        assert opened(path).not_measured(4, "a1", BOTH) == ("lambada",)


def opened_after_crash(path):
    """The evaluations that a process would find if this one were killed now."""
    copy = path.with_name("copy.jsonl")
    copy.write_bytes(path.read_bytes())
    return opened(copy)


def test_a_folder_in_the_place_of_the_file_is_named(path):
    path.mkdir()
    with pytest.raises(ValueError, match=r"Is a directory: .*evals\.jsonl'; a watch records"):
        opened(path)


def test_a_second_watcher_is_refused_until_the_first_has_closed_the_file(path):
    first = EvalsFile(path, EvalOptions())
    with pytest.raises(ValueError, match="written by another process that watches this run"):
        opened(path)
    first.close()
    opened(path)
