"""Wrong input: a run is refused at once with one sentence, and nothing is left behind."""

import errno
import io
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.training_config import EvalConfig, SampleConfig
from model.config import GPTConfig
from parallel.shared_errors import SharedError
from storage.checkpoint_folder import step_of
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.data_sets import tiny_data_set
from tests.faults import with_fault
from tests.launching import ENVIRONMENT, REPO, python
from tests.runs import built, flags, lines, losses, nano_config, run_to_end, tiny_config
from train.command_line.parse import parse
from train.config import Config
from train.recovery.ending import finish


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=60)
    return folder


def validated(every=1, val_tokens=64):
    return EvalConfig(every=every, val_tokens=val_tokens, tasks_every=0, tasks=())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 100}, "batch_tokens=100 is not a multiple of 2 x 16 x 1"),
        ({"model": GPTConfig(2, 2, 16, 16, vocab_size=300)}, "give --model.vocab-size 50257"),
        ({"context_length": 10_000, "batch_tokens": 20_000}, "smaller --context-length"),
        ({"eval": validated(val_tokens=10**9)}, "val"),
        ({"residual": "bfloat16"}, "float32 on cpu, would only lose precision; give --dtype bfl"),
        (
            {"compile": "max", "deterministic": True},
            "chooses kernels by measuring .* --compile on",
        ),
        ({"steps": None, "schedule": None}, "warmup_steps=715 is not less than steps="),
    ],
)
def test_an_impossible_run_is_refused_before_anything_is_written(data, tmp_path, changes, message):
    config = tiny_config(data, tmp_path / "run")
    if "schedule" in changes:
        changes = {"steps": None, "schedule": replace(config.schedule, warmup_steps=715)}
    with pytest.raises(ValueError, match=message):
        built(replace(config, **changes))
    assert not (tmp_path / "run").exists()


def test_a_missing_data_set_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        built(tiny_config(tmp_path / "nowhere", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_flipped_byte_in_a_shard_is_found_before_step_1(data, tmp_path):
    tiny_data_set(tmp_path / "set", documents=60)
    shard = next((tmp_path / "set").glob("train_*1.npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=shard.name):
        built(tiny_config(tmp_path / "set", tmp_path / "run"))


def test_a_disk_that_one_rank_cannot_read_is_an_error_of_all_ranks(data, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error", "train_000001.npy")

    monkeypatch.setattr("train.preflight.inputs.check_data_set", broken)
    with pytest.raises(SharedError, match=r"train_000001\.npy: input/output error"):
        built(tiny_config(data, tmp_path / "run"))


def test_a_folder_with_another_run_is_refused_with_the_difference(data, tmp_path):
    config = tiny_config(data, tmp_path / "run")
    run_to_end(config)
    with pytest.raises(ValueError, match=r"another configuration \(seed: 1337 -> 5\)"):
        built(replace(config, seed=5))


def test_a_folder_with_files_under_a_runs_names_is_refused(data, tmp_path):
    (tmp_path / "thesis" / "samples").mkdir(parents=True)
    (tmp_path / "thesis" / "samples" / "chapter1.tex").write_text("...")
    with pytest.raises(ValueError, match=r"holds samples, which a run would write, but no config"):
        built(tiny_config(data, tmp_path / "thesis"))
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["samples"]


def test_a_folder_that_another_process_writes_is_refused(data, tmp_path):
    config = tiny_config(data, tmp_path / "run")
    run_to_end(config)
    code = (
        "import sys, pathlib; from storage.run_folder import RunFolder;"
        f"r = RunFolder(pathlib.Path({str(config.out)!r})); r.lock(); print('locked', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPO,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"being written by pid {holder.pid}"):
            built(config)
        holder.kill()


def test_fine_tuning_from_a_checkpoint_of_another_shape_is_refused(data, tmp_path):
    first = tiny_config(data, tmp_path / "first", steps=3)
    run_to_end(first)
    wider = GPTConfig(n_layer=2, n_head=2, n_embd=32, context_length=16)
    config = tiny_config(
        data, tmp_path / "run", init=first.out / "checkpoints" / "latest", model=wider
    )
    with pytest.raises(ValueError, match="has --model.n-embd 16, which contradicts .* 32; omit"):
        built(config)


def test_fine_tuning_from_a_missing_checkpoint_is_refused(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", init=tmp_path / "nothing")
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        built(config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-tokens", "100"], "error: batch_tokens=100 is not a multiple"),
        (["--batch-tokenz", "100"], "--batch-tokens"),
        (["--eval.tasks", "helaswag"], "helaswag"),
        (["--data", "nowhere"], "error: "),
    ],
)
def test_the_command_line_ends_with_code_2_and_no_traceback(data, tmp_path, words, message):
    done = python(*flags(tiny_config(data, tmp_path / "run")), *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_after_a_crash_the_status_is_failed_with_the_reason(data, tmp_path, monkeypatch):
    import train.recovery.ending as script

    def crash(run):
        raise OSError("the cable was pulled")

    monkeypatch.setattr(script, "train", crash)
    run = built(tiny_config(data, tmp_path / "run"))
    with pytest.raises(OSError, match="cable"):
        script.finish(run)
    assert RunFolder(tmp_path / "run").read_status() == {
        "state": "failed",
        "step": 0,
        "reason": "OSError: the cable was pulled",
        "attempts": 1,
        "started_at_step": 0,
    }


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """A function that starts a run; it crashes at step 3 each time, with a save at step 2."""
    monkeypatch.setattr("train.recovery.restarts.FIRST_PAUSE_SECONDS", 0.001)
    config = nano_config(tmp_path, save=SaveConfig(2, 0))

    def crash(run, loss):
        if run.step == 3:
            raise RuntimeError("a bad batch")
        return loss

    def start(automatic):
        shutil.rmtree(config.out / "tensorboard", ignore_errors=True)  # it waits for a new second
        monkeypatch.setattr("train.recovery.run_folder_start.is_restart", lambda: automatic)
        with pytest.raises(RuntimeError, match="a bad batch"):
            finish(with_fault(built(config), crash))
        return RunFolder(config.out)

    return start


@pytest.mark.fault("P10", injected="an error at step 3 of every start", lost="0")
def test_a_crash_that_repeats_ends_after_three_restarts(attempt):
    folder = attempt(automatic=False)
    newest = [step_of(folder.recover_newest_checkpoint())]
    for _ in range(4):
        newest.append(step_of(attempt(automatic=True).recover_newest_checkpoint()))
    assert newest == [3] * 5
    with pytest.raises(ValueError, match=r"4 times at step 3 .*last reason: RuntimeError: a bad b"):
        attempt(automatic=True)
    status = folder.read_status()
    assert (status["state"], status["step"], status["attempts"]) == ("failed", 3, 4)


@pytest.mark.fault("D9", injected="a validation that fails", lost="0", identical=True)
def test_an_evaluation_that_fails_is_logged_and_training_is_the_same(tmp_path, monkeypatch, caplog):
    plain = nano_config(tmp_path)
    run_to_end(plain)

    def fail(*_, **__):
        raise ValueError("item 7 is damaged")

    monkeypatch.setattr("train.evaluation.mixture_loss", fail)
    config = replace(plain, out=tmp_path / "other", eval=validated(every=4))
    assert run_to_end(config).step == 8
    assert "val_loss at step 4 failed (item 7 is damaged); training continues" in caplog.text
    assert losses(config.out) == losses(plain.out)


@pytest.mark.fault("S7", injected="no space for a file of samples", lost="0", identical=True)
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("no kernel"), KeyError("x")],
)
def test_a_sample_that_cannot_be_made_is_logged_and_the_rest_is_kept(
    tmp_path, monkeypatch, caplog, error
):
    def fail(*_):
        raise error

    monkeypatch.setattr("train.evaluation.write_text", fail)
    plain = nano_config(tmp_path)
    run_to_end(plain)
    drawn = SampleConfig(every=4, max_tokens=2)
    config = replace(plain, out=tmp_path / "other", eval=validated(every=4), sample=drawn)
    run_to_end(config)
    assert f"sampling at step 4 failed ({error}); training continues" in caplog.text
    assert losses(config.out) == losses(plain.out)
    assert [line["step"] for line in lines(config.out) if "val/loss" in line] == [0, 4, 8]


def numeric_flags(config, prefix="--"):
    """The flag of every option that is a number."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from numeric_flags(value, f"{prefix}{field.name}.")
        elif type(value) in (int, float):
            yield f"{prefix}{field.name}".replace("_", "-")


@pytest.mark.fault("D8", injected="-1, nan, -inf, inf or a word for each number", lost="0")
@settings(max_examples=12)
@given(
    flag=st.sampled_from(sorted(numeric_flags(Config()))),
    value=st.sampled_from(["-1", "nan", "-inf", "inf", "1e400", "many", ""]),
)
def test_no_number_of_the_configuration_may_be_negative_or_not_finite(flag, value):
    name = flag.rpartition(".")[2].strip("-").replace("-", "_")
    quiet = redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO())
    with quiet[0], quiet[1], pytest.raises((ValueError, SystemExit), match=f"{name}|^2$"):
        parse([f"{flag}={value}"])
