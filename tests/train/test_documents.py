"""Runs with --mask-documents: resumed, validated, averaged and audited with the mask."""

import shutil
from dataclasses import replace

import pytest
import torch

from eval.subject import EvalOptions, load_subject, with_checkpoint_defaults
from eval.tasks.mixture_loss import val_loss
from eval.training_config import EvalConfig
from model.averaging.selection import read_members
from model.averaging.weighted_mean import mean_shares, write_average
from model.blocks import attention_backend
from storage.atomic import read_json, write_json
from storage.checkpoint_folder import write_manifest
from tests.runs import (
    KEEP_ALL,
    MODERN,
    RECIPES,
    alone,
    built,
    final_bytes,
    forget_after,
    losses,
    nano_config,
    run_to_end,
)
from train.audit import Arguments, audit
from train.auditing.recorded_run import read_recorded_run
from train.memory.forecast import step_attention

EVALUATED = EvalConfig(every=4, val_tokens=64, tasks_every=0, tasks=())
MASKED = {"mask_documents": True, "save": KEEP_ALL, "eval": EVALUATED}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The configuration of a run of eight steps with a mask, which has ended."""
    config = nano_config(tmp_path_factory.mktemp("run"), **MASKED, **RECIPES["modern"])
    run_to_end(config)
    return config


@pytest.fixture
def config(finished, tmp_path):
    """The same for a copy of the run."""
    shutil.copytree(finished.out, tmp_path / "run", symlinks=True)
    return replace(finished, out=tmp_path / "run")


def checkpoint(config, step):
    return config.out / "checkpoints" / f"step_{step:06d}"


def evaluated(folder):
    """The validation loss of a checkpoint, as eval/main.py measures it."""
    options = with_checkpoint_defaults(folder, EvalOptions(micro_batch=2))
    return val_loss(load_subject(folder, alone()), options).tags["val/loss"]


def test_a_resumed_run_is_that_without_a_stop_to_the_bit(config):
    whole, weights = losses(config.out), final_bytes(config.out)
    forget_after(config.out, 4)
    run_to_end(config)
    assert (losses(config.out), final_bytes(config.out)) == (whole, weights)


def test_evaluation_of_a_checkpoint_gives_the_validation_loss_of_training(config):
    folder = checkpoint(config, 8)
    recorded = read_json(folder / "results.json")["metrics"]["val/loss"]
    assert evaluated(folder) == recorded
    assert load_subject(folder, alone()).separator == 299
    state = read_json(folder / "state.json")
    assert state.pop("mask_documents")
    write_json(folder / "state.json", state)
    write_manifest(folder)
    assert evaluated(folder) != recorded


def test_an_average_of_masked_checkpoints_is_validated_with_the_mask(config, tmp_path):
    members = read_members([checkpoint(config, step) for step in (6, 8)], other_runs=False)
    write_average(members, mean_shares(2), tmp_path / "mean", {"kind": "mean"})
    assert load_subject(tmp_path / "mean", alone()).mask_documents


def test_a_run_without_the_option_says_nothing_of_it_in_its_checkpoints(tmp_path):
    config = nano_config(tmp_path, steps=4, save=KEEP_ALL)
    run_to_end(config)
    assert "mask_documents" not in read_json(checkpoint(config, 4) / "state.json")
    assert not load_subject(checkpoint(config, 4), alone()).mask_documents


def test_a_continued_run_takes_another_choice_only_if_it_is_named(config):
    other = replace(config, mask_documents=False, steps=10, allow=("steps",))
    with pytest.raises(ValueError, match=r"mask_documents: True -> False.*--no-mask-documents"):
        built(other)
    run_to_end(replace(other, allow=("steps", "mask_documents")))
    assert "mask_documents" not in read_json(checkpoint(config, 10) / "state.json")


def test_an_audit_repeats_the_steps_and_validations_with_the_mask(finished):
    found = audit(
        Arguments(run=finished.out, segments=2, seed=1), read_recorded_run(finished.out), alone()
    )
    assert found.holds
    assert [segment.how for segment in found.segments] == ["bit for bit"] * 2


def test_the_step_itself_is_within_documents(config):
    run = built(replace(config, steps=12, allow=("steps",)))
    batch = run.loader.next_step()
    run.close()
    ids = batch.windows.long() & 0xFFFF
    starts = (ids[:, 1:-1] == run.separator).any(1)
    window = ids[starts][:1]
    inputs, targets = window[:, :-1].clone(), window[:, 1:]
    begin = int((inputs[0] == run.separator).nonzero()[-1])
    with torch.no_grad():
        before = run.learner.step_model(inputs, targets)
        inputs[0, begin - 1] = 5  # of the document before the last one
        after = run.learner.step_model(inputs, targets)
        states = [
            run.model.hidden(ids, separator=run.separator) for ids in (window[:, :-1], inputs)
        ]
    assert before != after
    assert torch.equal(states[0][:, begin:], states[1][:, begin:])


def test_the_kernel_of_a_masked_step_is_recorded_by_its_name(monkeypatch, finished):
    ranks = alone()
    assert read_json(finished.out / "config.json")["run"]["attention"] == step_attention(
        finished, MODERN, ranks
    )
    assert step_attention(replace(finished, mask_documents=False), MODERN, ranks) == (
        attention_backend(MODERN, ranks.device, torch.float32)
    )
    monkeypatch.setattr("train.memory.forecast.uses_flex", lambda *facts: True)
    assert step_attention(finished, MODERN, ranks) == "flex"
