"""Stop requests by signal and by a time limit."""

import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest

from parallel.ranks import user_errors
from parallel.stop_signals import (
    SAME_KEYPRESS_SECONDS,
    StopRequest,
    parse_time,
)
from storage.exit_codes import INTERRUPTED_CODE, PREEMPTED_CODE
from tests.launching import ENVIRONMENT, REPO
from train.config import Config

pytestmark = pytest.mark.usefixtures("restored_signal_handlers")


def test_a_hangup_that_nohup_lets_us_ignore_is_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopRequest().listen()
    with StopRequest().listening():
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_longer_save_is_begun_earlier():
    signals = StopRequest(stop_at=time.time() + 60)
    signals.check_time_limit(50)
    assert not signals.wanted
    signals.check_time_limit(61)
    assert signals.wanted


def test_a_time_is_unix_seconds_or_iso():
    assert parse_time("1800000000.5") == 1800000000.5
    assert parse_time("2026-11-21T18:30+00:00") == 1795285800
    assert parse_time("2026-11-21T18:30") == datetime(2026, 11, 21, 18, 30).timestamp()
    with pytest.raises(ValueError, match=r"stop_at=tomorrow is no time; give Unix seconds or ISO"):
        Config(stop_at="tomorrow")


def test_a_sigint_after_another_signal_is_the_first_of_its_kind():
    signals = StopRequest()
    signals.nothing_to_save = False
    signals._receive(signal.SIGTERM, None)
    signals._receive(signal.SIGINT, None)
    signals._receive(signal.SIGINT, None)
    signals.interrupted_at -= SAME_KEYPRESS_SECONDS
    with pytest.raises(KeyboardInterrupt):
        signals._receive(signal.SIGINT, None)


def test_a_ctrl_c_that_nothing_handles_ends_with_its_code_and_one_word(capsys):
    with pytest.raises(SystemExit, match=str(INTERRUPTED_CODE)), user_errors():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_second_ctrl_c_ends_training_and_the_watcher_alike(first):
    request = StopRequest(nothing_to_save=False)  # as both have it
    with request.listening(), pytest.raises(SystemExit, match="130"), user_errors():
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)  # of the same key press, or the first of its kind
        assert request.interrupted_at is not None
        request.interrupted_at -= SAME_KEYPRESS_SECONDS
        signal.raise_signal(signal.SIGINT)


LONG_CALL = """
import hashlib, sys
from parallel import stop_signals
from parallel.ranks import user_errors
stop_signals._CALL_SECONDS = 0.2
stop_signals.StopRequest(nothing_to_save=False).listen()
with user_errors():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))  # no handler is called meanwhile
print("survived")
"""


def test_a_second_ctrl_c_in_a_long_call_ends_the_process_too():
    words = [sys.executable, "-c", LONG_CALL, str(10**9)]  # minutes
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=REPO, env=ENVIRONMENT, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(SAME_KEYPRESS_SECONDS + 0.1)  # what a person waits
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == INTERRUPTED_CODE
        assert process.stdout.read() == ""


def test_before_the_first_step_only_the_first_signal_ends_the_process():
    signals = StopRequest()
    with pytest.raises(SystemExit, match=str(PREEMPTED_CODE)):
        signals._receive(signal.SIGINT, None)
    signals._receive(signal.SIGINT, None)  # torchrun's: must not cut short what the first began
