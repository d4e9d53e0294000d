"""Validation loss and bits per byte, compared with sums computed by hand."""

import logging
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eval.subject import EvalOptions
from eval.tasks.mixture_loss import val_loss
from eval.tasks.registry import run_tasks
from eval.tasks.val_loss import validation_sums, validation_tokens
from storage.option_values import AtMost
from tests.data_sets import tiny_data_set
from tests.eval_subjects import limit_memory, tiny_subject

T = 48


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data_set(tmp_path_factory.mktemp("val") / "data", documents=300)


def measure(subject, data, windows=13, micro_batch=4, dtype=torch.float32):
    sums = validation_sums(subject, data.split("val"), windows * T, T, micro_batch, dtype)
    return sums.tags("val")


def test_the_loss_is_the_mean_over_all_targets_with_all_logits(data):
    subject, tokens = tiny_subject(), data.split("val").read(0, 13 * T + 1).astype(np.int64)
    logits = subject.model(torch.from_numpy(tokens[:-1].reshape(13, T))).double()
    wanted = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(tokens[1:]))
    assert measure(subject, data)["val/loss"] == pytest.approx(wanted.item(), abs=1e-5)


def test_bits_per_byte_ignores_end_of_text(data):
    subject, tokens = tiny_subject(), data.split("val").read(0, 13 * T + 1).astype(np.int64)
    logits = subject.model(torch.from_numpy(tokens[:-1].reshape(13, T))).double()
    targets = torch.from_numpy(tokens[1:])
    nats = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    text = [int(t) for t in targets if t != subject.tokenizer.end_of_text]
    assert len(text) < len(targets)
    bytes_ = sum(len(subject.tokenizer._encoding.decode_single_token_bytes(t)) for t in text)
    wanted = nats[targets != subject.tokenizer.end_of_text].sum().item() / (math.log(2) * bytes_)
    assert measure(subject, data)["val/bits_per_byte"] == pytest.approx(wanted, abs=1e-5)


def test_the_unpadded_loss_is_over_the_real_ids_only(data):
    subject, tokens = tiny_subject(), data.split("val").read(0, 13 * T + 1).astype(np.int64)
    logits = subject.model(torch.from_numpy(tokens[:-1].reshape(13, T))).double()
    real = logits[..., : subject.tokenizer.n_vocab].flatten(0, 1)
    wanted = F.cross_entropy(real, torch.from_numpy(tokens[1:])).item()
    options = EvalOptions(data=(data.folder,), val_tokens=13 * T)
    found = run_tasks(subject, options, ["val_loss", "val_unpadded"])
    assert found["val_unpadded/loss"] == pytest.approx(wanted, abs=1e-5)
    assert found["val_unpadded/loss"] < found["val/loss"] - 1e-4
    assert found["val_unpadded/bits_per_byte"] < found["val/bits_per_byte"]


@pytest.mark.parametrize("micro_batch", [1, 5, 13, 64])
def test_another_micro_batch_gives_the_same_loss(data, micro_batch):
    subject = tiny_subject()
    one, other = measure(subject, data), measure(subject, data, micro_batch=micro_batch)
    assert other == pytest.approx(one, abs=1e-5)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_loss(data, monkeypatch, caplog):
    subject = tiny_subject()
    whole = measure(subject, data)
    passes = limit_memory(monkeypatch, subject.model, 3 * T)
    assert measure(subject, data, micro_batch=8) == pytest.approx(whole, abs=1e-5)
    assert passes == [n * T for n in (8, 4, 2, 2, 2, 2, 2, 1, 2)]
    assert caplog.text.count("out of memory: batches of at most") == 2


def test_a_window_that_does_not_fit_alone_is_an_error_with_the_cure(data, monkeypatch):
    subject = tiny_subject()
    limit_memory(monkeypatch, subject.model, T - 1)
    with pytest.raises(ValueError, match=f"one row of {T} tokens does not fit the memory of cpu"):
        measure(subject, data)


def test_the_task_reads_the_data_set_it_is_given(data):
    options = EvalOptions(data=(data.folder,), val_tokens=13 * T, micro_batch=4)
    assert val_loss(tiny_subject(), options).tags == measure(tiny_subject(), data)


def test_validation_does_not_change_the_model(data):
    subject = tiny_subject()
    subject.model.train()
    before = torch.get_rng_state()
    measure(subject, data)
    assert subject.model.training
    assert torch.equal(before, torch.get_rng_state())
    assert not any(p.is_inference() for p in subject.model.parameters())


def test_bfloat16_is_close_to_float32(data):
    subject = tiny_subject()
    exact, rounded = measure(subject, data), measure(subject, data, dtype=torch.bfloat16)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=2e-2)


def test_too_many_windows_are_refused_with_the_number_that_fits(data):
    shards = data.split("val")
    most = (shards.tokens - 1) // T * T
    assert validation_tokens(shards, most, T) == most
    with pytest.raises(ValueError, match=f"give --val-tokens {most} or less"):
        validation_tokens(shards, most + T, T)
    with pytest.raises(ValueError, match=f"less than one window .* give --x {T} or more"):
        validation_tokens(shards, T - 1, T, "--x")


def test_a_number_that_nobody_gave_is_lowered_to_what_there_is(data):
    shards = data.split("val")
    most = (shards.tokens - 1) // T * T
    assert validation_tokens(shards, AtMost(10**9), T) == most
    assert validation_tokens(shards, AtMost(T + 3), T) == T + 3  # as it was, where it fits
    assert validation_tokens(shards, AtMost(1), T) == T
    with pytest.raises(ValueError, match="hold no window of context_length=100000; prepare"):
        validation_tokens(shards, AtMost(10**9), 100_000)


def test_without_a_number_the_loss_is_that_of_all_there_is(data, caplog):
    caplog.set_level(logging.INFO)
    subject, shards = tiny_subject(), data.split("val")
    most = (shards.tokens - 1) // T * T
    found = val_loss(subject, EvalOptions(data=(data.folder,))).tags
    assert found == val_loss(subject, EvalOptions(data=(data.folder,), val_tokens=most)).tags
    assert f"val_loss: {most:,} tokens, all whole windows of" in caplog.text


def test_weights_that_are_not_finite_are_an_error(data):
    subject = tiny_subject()
    torch.nn.init.constant_(subject.model.ln_f.weight, math.nan)
    with pytest.raises(ValueError, match="validation loss is nan"):
        measure(subject, data)


def test_a_data_set_of_another_tokenizer_is_refused(data, monkeypatch):
    subject = tiny_subject()
    monkeypatch.setattr(subject.tokenizer, "ranks_sha256", "0" * 64)
    with pytest.raises(ValueError, match="the model was trained with another"):
        val_loss(subject, EvalOptions(data=(data.folder,), val_tokens=T))


def test_without_a_data_set_the_error_names_the_option():
    with pytest.raises(ValueError, match="give its folder as --data"):
        val_loss(tiny_subject(), EvalOptions())


def test_data_that_were_moved_are_asked_for_by_the_flag(tmp_path):
    with pytest.raises(
        ValueError, match="no data set at .*gone for val_loss; if it was moved, give"
    ):
        val_loss(tiny_subject(), EvalOptions(data=(tmp_path / "gone",)))
