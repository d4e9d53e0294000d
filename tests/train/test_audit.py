"""Audits: an honest run is repeated, what was edited is found, and the folder is only read."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from bench.edited_records import seal, set_in_line
from bench.forged_runs import FORGERIES
from eval.training_config import EvalConfig
from storage.checkpoint_folder import write_manifest
from storage.json_lines import read_lines
from storage.retention import SaveConfig
from tests.launching import python, together
from tests.runs import GOLDEN, KEEP_ALL, alone, nano_config, run_to_end
from train.audit import Arguments, audit
from train.auditing.recorded_run import read_recorded_run
from train.checkpoints.state_digest import (
    chain_digest,
    read_digest,
    saved_tensors,
    tensors_digest,
)
from train.preflight.initial_weights import checkpoint_of_init

BY_NAME = {forgery.name: forgery for forgery in FORGERIES}
EVALUATED = EvalConfig(every=8, val_tokens=64, tasks_every=0, tasks=())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 24 steps with a checkpoint every four."""
    save = SaveConfig(every=4, every_minutes=0, keep=99)
    config = nano_config(tmp_path_factory.mktemp("run"), steps=24, save=save, eval=EVALUATED)
    run_to_end(config)
    return config.out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be edited."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def verdict(folder, segments=0, **options):
    """The verdict on a run, of which `segments` are repeated."""
    arguments = Arguments(run=folder, segments=segments, seed=1, **options)
    return audit(arguments, read_recorded_run(folder), alone())


def repeated(folder, first):
    """The problems of the segment that begins at this step."""
    found = verdict(folder, 99).segments
    return next(segment.problems for segment in found if segment.first == first)


def test_an_honest_run_is_repeated_bit_for_bit_and_only_read(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    found = verdict(finished, 2)
    assert found.holds
    assert [segment.how for segment in found.segments] == ["bit for bit"] * 2
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    text = found.text()
    assert "PASSED" in text
    assert "2 of 6 segments (8 steps), drawn with --seed 1" in text
    assert "one segment with a probability of 33%" in text


@pytest.mark.parametrize(
    "name",
    [
        "one weight of a checkpoint edited by 0.01",
        "one moment of a checkpoint edited by 1e-6",
        "position in the data moved by a step",
        "a validation loss lowered by 0.01, in line and checkpoint",
        "a metric line deleted",
        "weight decay in config.json edited afterwards",
    ],
)
def test_an_edit_breaks_the_chain(run, name):
    BY_NAME[name].edit(run)
    seal(run, chain=False)
    assert not verdict(run).holds


def test_an_edit_whose_digests_were_computed_again_is_found_by_repeating(run):
    BY_NAME["one weight edited in its last bit"].edit(run)
    BY_NAME["a validation loss lowered by 0.01, in line and checkpoint"].edit(run)
    seal(run, chain=True)
    assert verdict(run).holds
    found = {s.first: s.problems for s in verdict(run, 99).segments}
    assert [first for first, problems in found.items() if problems] == [8, 12, 16]
    assert "state after step 11: 1 tensors differ (weights.ln_f.weight)" in found[8]
    assert found[16][0].startswith("val/loss: 1 of 4 steps differ, first step 16")


def test_a_checkpoint_whose_own_digests_fit_is_not_the_one_that_was_continued(run):
    BY_NAME["one weight of a checkpoint edited by 0.01"].edit(run)
    checkpoint = run / "checkpoints" / "step_000012"
    record = read_digest(checkpoint) | {"tensors": tensors_digest(saved_tensors(checkpoint))}
    record["digest"] = chain_digest(record)
    (checkpoint / "digest.json").write_text(json.dumps(record))
    write_manifest(checkpoint)
    problems = "; ".join(f.detail for f in verdict(run).chain if not f.holds)
    assert "digests.jsonl records another checkpoint of step 12" in problems
    assert "step 16 was made from another checkpoint than the kept one of step 12" in problems


def test_a_chain_that_has_lost_lines_is_a_note_and_no_accusation(run):
    shutil.rmtree(run / "checkpoints" / "step_000012")
    lines = [line for line in read_lines(run / "digests.jsonl") if line["step"] != 12]
    (run / "digests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = verdict(run)
    assert found.holds
    assert any("back to 8 cannot be followed" in note for note in found.notes)


def test_the_chain_is_followed_over_checkpoints_that_were_deleted(run):
    for step in (4, 12, 16):
        shutil.rmtree(run / "checkpoints" / f"step_{step:06d}")
    found = verdict(run, 1)
    assert (found.holds, found.drawable) == (True, 3), found.text()
    assert not any("cannot be followed" in note for note in found.notes)


def test_only_the_first_steps_of_a_segment_are_repeated_if_asked(finished):
    found = verdict(finished, 1, steps=2)
    assert (found.segments[0].steps, found.segments[0].whole) == (2, False)


def test_where_bits_may_differ_a_tolerance_is_measured_and_said(run):
    starts = run / "starts.jsonl"
    starts.write_text(starts.read_text().replace(torch.__version__, "1.0"))
    set_in_line(13, "train/loss", lambda loss: loss + 1e-5)(run)  # as if rounded otherwise
    found = verdict(run, 99)
    segment = next(s for s in found.segments if s.first == 12)
    assert not segment.problems
    assert segment.how.startswith("within loss 0.001, gradient norm")
    assert "not bit for bit, since rounding differs: torch 1.0, here" in segment.how
    assert "a change smaller than the tolerance is not found" in found.text()
    set_in_line(13, "train/loss", lambda loss: loss + 0.01)(run)
    assert repeated(run, 12)[0].startswith("train/loss: 1 of 4 steps differ, first step 13")


def test_an_old_run_is_audited_by_repeating_alone(tmp_path):
    shutil.copytree(GOLDEN / "data_set", tmp_path / "data")  # a check keeps its digests there
    found = verdict(GOLDEN.parent / "format_5" / "run", 9, data=(tmp_path / "data",))
    assert found.holds, found.text()
    assert any("no digest up to step 4" in note for note in found.notes)


def test_two_ranks_repeat_bit_for_bit_what_one_has_summed_in_a_tree(tmp_path):
    config = nano_config(tmp_path, save=KEEP_ALL, reduction="tree")
    run_to_end(config)
    file = tmp_path / "found.json"
    words = [str(config.out), "--segments", "2", "--seed", "3", "--json", str(file)]
    done = together(2, "train/audit.py", *words, "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [s["how"] for s in json.loads(file.read_text())["segments"]] == ["bit for bit"] * 2


def test_a_rate_that_was_changed_on_the_way_is_no_forgery(finished, tmp_path):
    config = nano_config(tmp_path, save=KEEP_ALL)
    run_to_end(replace(config, steps=4, schedule=replace(config.schedule, kind="constant")))
    lower = replace(config.optimizer, lr=5e-3)
    allow = ("optimizer.lr", "steps")
    constant = replace(config.schedule, kind="constant")
    run_to_end(replace(config, optimizer=lower, allow=allow, schedule=constant))
    found = verdict(config.out, 99)
    assert found.holds, found.text()
    assert [s.first for s in read_recorded_run(config.out).stretches] == [0, 4]


def test_a_run_that_began_with_other_weights_names_them(finished, tmp_path):
    init = tmp_path / "init"
    shutil.copytree(finished / "checkpoints" / "step_000024", init)
    config = nano_config(tmp_path, steps=4, save=KEEP_ALL, init=init)
    run_to_end(config)
    found = verdict(config.out, 9)
    assert (found.holds, found.drawable) == (True, 2), found.text()
    assert f"How the initial weights, --init {init}, were made." in found.text()
    shutil.rmtree(init)
    checkpoint_of_init.cache_clear()
    found = verdict(config.out)
    assert (found.holds, found.drawable) == (True, 1)
    assert "which is not here" in found.text()


def test_the_script_says_what_it_found_with_its_exit_code(run):
    BY_NAME["a loss lowered by 0.01"].edit(run)
    done = python("train/audit.py", str(run), "--segments", "0")
    assert done.returncode == 1
    assert "lines of steps 12 to 15 are not those before step_000016" in done.stdout
    shutil.rmtree(run / "checkpoints")
    done = python("train/audit.py", str(run))
    assert done.returncode == 2
    assert "has no checkpoint with which repeated steps could be compared" in done.stderr
