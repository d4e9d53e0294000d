"""The launcher ends as its processes do, adds nothing to what they say, and restarts them."""

import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace

import pytest

from parallel import addresses, launcher
from parallel.addresses import choose_addresses, reachable_host
from storage.exit_codes import FINAL_CODES, INTERRUPTED_CODE
from tests.launching import ENVIRONMENT, FORKING_LAUNCHER, REPO, python

PROGRAM = str(REPO / "tests/programs/ending.py")


def options(*more, processes=2):
    return ["parallel/launcher.py", "--standalone", f"--nproc_per_node={processes}", *more]


def launched(folder, *ranks, restarts=1):
    """Start a job whose ranks end as asked; what it printed, its code, and the starts of rank 0."""
    words = options(f"--max-restarts={restarts}", processes=len(ranks))
    words += [PROGRAM, str(folder), *(f"{n}:{how}" for n, how in enumerate(ranks))]
    done = python(FORKING_LAUNCHER, *words)
    return done.stderr, done.returncode, len(list(folder.glob("0.*")))


def test_processes_that_succeed_end_without_a_word(tmp_path):
    assert launched(tmp_path, "0", "0") == ("", 0, 1)
    assert (tmp_path / "0.0").read_text() == "127.0.0.1"  # whatever this machine is called


@pytest.mark.parametrize("code", sorted(FINAL_CODES))
def test_a_final_code_is_passed_on_without_a_word_and_not_tried_again(tmp_path, code):
    assert launched(tmp_path, "wait", str(code)) == ("", code, 1)


def test_a_killed_process_is_named_and_all_are_started_again(tmp_path):
    text, code, starts = launched(tmp_path, "wait", "kill")
    assert (code, starts) == (128 + signal.SIGKILL, 2)
    first, second = text.splitlines()
    assert first.endswith(
        "rank 1 was killed by SIGKILL; all ranks are started again (1 restarts left)"
    )
    assert second.endswith("rank 1 was killed by SIGKILL")


@pytest.mark.parametrize(
    ("codes", "final", "code"),
    [
        ([1, 75], False, 1),  # the second had not begun when the first crashed
        ([75, 1], True, 75),
        ([76, 2], True, 2),  # the first found that its peer was gone, and is not the cause
        ([76, -9], False, 137),
        ([76, 76], False, 76),
        ([-15, 73], True, 73),
        ([0, 75], False, 75),
    ],
)
def test_the_cause_decides(codes, final, code):
    assert (launcher.is_final(codes), launcher.exit_code(codes)) == (final, code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_after_a_signal_the_code_is_that_of_the_processes(tmp_path, number):
    words = [*options(), PROGRAM, str(tmp_path), "0:wait", "1:wait"]
    job = subprocess.Popen(
        [sys.executable, *words], cwd=REPO, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    while len(list(tmp_path.glob("*.0"))) < 2:
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(number)
    if number == signal.SIGUSR1:  # passed on as it is, and this program does not handle it
        assert (job.communicate(timeout=60)[1], job.returncode) == ("", 128 + number)
    else:
        assert (job.communicate(timeout=60)[1], job.returncode) == ("", 75)


def test_a_second_ctrl_c_reaches_the_processes_too(tmp_path):
    words = [*options(), PROGRAM, str(tmp_path), "0:save", "1:save"]
    job = subprocess.Popen(
        [sys.executable, *words], cwd=REPO, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    while len(list(tmp_path.glob("*.0"))) < 2:
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    time.sleep(1.5)  # what a person waits
    job.send_signal(signal.SIGINT)
    assert (job.communicate(timeout=60)[1], job.returncode) == ("", INTERRUPTED_CODE)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--nproc_per_node=0", "nproc_per_node=0 starts no process"),
        ("--nproc_per_node=many", "Unsupported nproc_per_node value: many"),
        ("--nnodes=0", "nnodes=0 starts no process"),
        ("--nnodes=two", "nnodes=two"),
        ("--max-restarts=-1", "max_restarts must be >= 0"),
    ],
)
def test_a_wrong_option_is_one_sentence(word, message):
    done = python("parallel/launcher.py", word, PROGRAM)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_srun_with_more_tasks_than_machines_is_refused():
    done = python(*options(), PROGRAM, SLURM_NTASKS="8", SLURM_STEP_NUM_TASKS="8", SLURM_PROCID="3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: SLURM_NTASKS=8: srun has 8 tasks, but this one knows no")


@pytest.mark.parametrize("ignored", [True, False])
def test_a_hangup_is_handled_but_not_under_nohup(monkeypatch, ignored):
    monkeypatch.setattr(sys, "argv", [*options(), PROGRAM])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        handled = launcher._parse().signals_to_handle.split(",")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert {"SIGTERM", "SIGUSR1", "SIGUSR2"} < set(handled)
    assert ("SIGHUP" in handled) == (not ignored)


NAMES = {"first": "10.9.0.1", "second": "10.9.0.2", "debian": "127.0.1.1", "localhost": "127.0.0.1"}


@pytest.fixture
def network(monkeypatch):
    """A network in which this machine has a name and an address; only NAMES resolve."""

    def set_up(name, own):
        def resolve(host, *_, **__):
            if host in NAMES or addresses._is_address(host):
                return [(0, 0, 0, "", (NAMES.get(host, host), 0))]
            raise socket.gaierror("Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket, "gethostname", lambda: name)
        monkeypatch.setattr(socket, "getfqdn", lambda *_: name)
        monkeypatch.setattr(addresses, "_own_address_towards", lambda _: own)
        monkeypatch.setattr(addresses, "_is_free", lambda *_: True)
        monkeypatch.setattr(addresses, "_PATIENCE_SECONDS", 0.0)

    return set_up


@pytest.mark.parametrize(
    ("name", "own", "endpoint", "local", "conf"),
    [
        ("first", "10.9.0.1", "first:1", "first", ""),
        ("second", "10.9.0.2", "first:1", None, ""),  # torch's own choice: its name
        ("second", "10.9.0.2", "10.9.0.1:1", "10.9.0.2", ""),
        ("a1b2c3", "10.9.0.2", "first:1", "10.9.0.2", "is_host=0"),
        ("a1b2c3", "10.9.0.1", "10.9.0.1:1", "10.9.0.1", "is_host=1"),
        ("localhost", "10.9.0.2", "first:1", "10.9.0.2", ""),
        ("debian", "127.0.0.1", "debian:1", "debian", ""),
        ("a1b2c3", "127.0.0.1", "localhost:1", "localhost", ""),
    ],
)
def test_the_others_are_given_an_address_that_they_reach(network, name, own, endpoint, local, conf):
    network(name, own)
    given = Namespace(
        rdzv_endpoint=endpoint, rdzv_backend="c10d", rdzv_conf="", local_addr=None, standalone=False
    )
    choose_addresses(given, 2)
    assert (given.local_addr, given.rdzv_conf) == (local, conf)


def test_the_one_machine_of_a_job_needs_no_name_and_another_must_have_one(network):
    network("a1b2c3", "10.9.0.2")
    assert reachable_host("first", 1, one_machine=True) == "first"
    assert reachable_host("a1b2c3", 1, one_machine=True) == "127.0.0.1"
    assert reachable_host("10.9.0.7", 1, one_machine=False) == "10.9.0.7"
    with pytest.raises(ValueError, match="host a1b2c3 of MASTER_ADDR does not resolve"):
        reachable_host("a1b2c3", 1, one_machine=False)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [("nowhere:1", "host nowhere .*does not resolve"), ("first", "not of the form HOST:PORT")],
)
def test_an_endpoint_that_is_none_is_named(network, endpoint, message):
    network("second", "10.9.0.2")
    given = Namespace(
        rdzv_endpoint=endpoint, rdzv_backend="c10d", rdzv_conf="", local_addr=None, standalone=False
    )
    with pytest.raises(ValueError, match=message):
        choose_addresses(given, 2)
