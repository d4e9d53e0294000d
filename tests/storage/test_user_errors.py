"""What ends a script with one sentence: errors of ours, and those of the system in words."""

import errno
import os

import pytest

from storage.user_errors import exit_on_user_error, os_error_text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EISDIR, "a/x: is a directory; give the name of a file"),
        (errno.ENAMETOOLONG, "a/x: file name too long; choose a shorter name"),
        (errno.EIO, "a/x: input/output error"),
    ],
)
def test_an_error_of_the_system_is_told_in_words(number, text, capsys):
    with pytest.raises(SystemExit) as ended, exit_on_user_error(OSError):
        raise OSError(number, os.strerror(number), "a/x")
    assert (ended.value.code, capsys.readouterr().err) == (2, f"error: {text}\n")


def test_both_names_of_a_move_are_told_and_a_cure_may_be_another():
    error = OSError(errno.ENOSPC, "No space left on device", "a", None, "b")
    assert os_error_text(error, "make room") == "a -> b: no space left on device; make room"
    assert os_error_text(OSError("the cable was pulled")) == "the cable was pulled"
