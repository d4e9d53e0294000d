"""What would fail late fails before step 1, and a rehearsal changes nothing."""

import re
from dataclasses import replace

import pytest
import torch

from eval.training_config import EvalConfig, SampleConfig
from parallel.shared_errors import SharedError
from storage.run_folder import RunFolder
from tests.data_sets import tiny_data_set
from tests.faults import poison
from tests.launching import python
from tests.runs import (
    built,
    deterministic,
    final_bytes,
    flags,
    lines,
    run_to_end,
    set_step,
    tiny_config,
)
from train.loop import train
from train.preflight import dry_run as rehearsal
from train.preflight.dry_run import dry_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=100)
    return folder


def whole(data, out, **changes):
    """A run that validates, runs a task and samples."""
    evaluation = EvalConfig(every=4, val_tokens=64, tasks_every=8, tasks=("pydoc_choice",), items=2)
    sample = SampleConfig(every=8, prompts=("a", ""), max_tokens=4)
    return tiny_config(data, out, eval=evaluation, sample=sample, **changes)


def test_a_rehearsed_run_has_the_same_curve_and_weights_to_the_bit(data, tmp_path):
    plain, rehearsed = (whole(data, tmp_path / name) for name in ("plain", "rehearsed"))
    run_to_end(plain)
    run = built(rehearsed)
    dry_run(run)
    train(run)
    run.close()
    same = [[deterministic(line) for line in lines(c.out)] for c in (plain, rehearsed)]
    assert same[0] == same[1]
    assert final_bytes(plain.out) == final_bytes(rehearsed.out)


def test_one_line_says_that_all_is_well_and_nothing_is_left_behind(data, tmp_path, caplog):
    caplog.set_level("INFO")
    run = built(whole(data, tmp_path / "run"))
    before = sorted(run.folder.path.rglob("*"))
    dry_run(run)
    assert sorted(run.folder.path.rglob("*")) == before
    run.close()
    parts = "training step, validation, tasks, samples, checkpoint, logs"
    assert re.search(r"dry run of \d+ s: every part works:", caplog.text)
    assert f"  {parts}\n" in caplog.text


def test_what_the_run_never_does_is_not_rehearsed(data, tmp_path):
    run = built(tiny_config(data, tmp_path / "run"))
    done, _ = rehearsal.dry_run_parts(run)
    run.close()
    assert done == ["training step", "checkpoint", "logs"]


@pytest.mark.parametrize(
    ("part", "broken"),
    [
        ("training step", "trial_step"),
        ("validation", "mixture_loss"),
        ("tasks", "run_tasks"),
        ("samples", "shared_samples"),
        ("checkpoint", "write_checkpoint"),
        ("checkpoint", "load_position"),
    ],
)
def test_a_part_that_fails_stops_the_run_and_is_named(data, tmp_path, monkeypatch, part, broken):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    run = built(whole(data, tmp_path / "run"))
    owner = run.learner if part == "training step" else rehearsal
    monkeypatch.setattr(owner, broken, fail)
    with pytest.raises(ValueError, match=f"the dry run's {part} failed .*No space left"):
        dry_run(run)
    status = RunFolder(tmp_path / "run").read_status()
    assert (status["state"], status["step"]) == ("failed", 0)
    assert not run.folder.is_locked()


def test_a_network_that_gives_no_number_fails_the_rehearsal(data, tmp_path):
    run = built(tiny_config(data, tmp_path / "run"))
    poison(run)
    with pytest.raises(ValueError, match="training step failed .*the loss of the first windows"):
        dry_run(run)


def test_a_checkpoint_that_reads_back_as_something_else_is_found(data, tmp_path, monkeypatch):
    run = built(tiny_config(data, tmp_path / "run"))
    original = rehearsal.load_file
    monkeypatch.setattr(
        rehearsal, "load_file", lambda path: {k: t + 1 for k, t in original(path).items()}
    )
    with pytest.raises(ValueError, match="checkpoint failed .*was read back as something else"):
        dry_run(run)


def test_a_log_that_cannot_be_written_is_found(data, tmp_path, monkeypatch):
    def full(*words):
        raise OSError("disk 7")

    run = built(tiny_config(data, tmp_path / "run"))
    monkeypatch.setattr("storage.event_files.write_all", full)
    with pytest.raises(ValueError, match="logs failed .*cannot be written"):
        dry_run(run)


def test_the_update_of_a_rehearsal_leaves_weights_and_moments_as_they_are(data, tmp_path):
    run = built(tiny_config(data, tmp_path / "run"))
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    rehearsal.training_step(run)
    assert all(torch.equal(w, before[n]) for n, w in run.model.state_dict().items())
    assert not any(
        value.any() for state in run.learner.optimizer.state.values() for value in state.values()
    )
    assert all(p.grad is None for p in run.model.parameters())
    run.close()


def test_a_run_that_is_resumed_or_does_not_want_one_has_no_rehearsal(data, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "dry_run_parts", lambda run: pytest.fail("was rehearsed"))
    config = tiny_config(data, tmp_path / "run", rehearsal=False)
    run = built(config)
    dry_run(run)
    run.config = replace(config, rehearsal=True)
    set_step(run, 3)
    dry_run(run)
    run.close()


def test_a_full_disk_is_said_in_one_sentence_with_exit_code_2(data, tmp_path):
    config = tiny_config(data, tmp_path / "run")
    script = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000,) * 2); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = python("-c", script, *flags(config))
    assert done.returncode == 2
    assert "error: the dry run's checkpoint failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_of_a_rank_that_is_gone_the_cause_is_asked_for_and_no_way_around(
    data, tmp_path, monkeypatch, caplog
):
    def lost(_):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]")

    monkeypatch.setattr(rehearsal, "PARTS", [("training step", lost, True)])
    run = built(tiny_config(data, tmp_path / "run"))
    with pytest.raises(SharedError, match=r"training step lost another rank .*log$") as told:
        dry_run(run)
    assert "--rehearsal" not in str(told.value)
    assert "lost another rank" in caplog.text  # for rank 0 may be the one that is gone
