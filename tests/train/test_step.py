"""One step of a Learner against a plain float64 reference, and a step that is not finite."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_prep.order.windows import read_windows
from model.loss import NextTokenLoss
from parallel.ranks import start
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.runs import SHAPE, built, lines, run_to_end, tiny_config
from train.batch_plan import BatchPlan
from train.build import build_learner, new_network
from train.config import Config
from train.guards.spikes import MAX_SKIPPED_IN_A_ROW
from train.loop import train
from train.optimizers.adamw import AdamWConfig, parameter_groups
from train.schedule import ScheduleConfig
from train.step import LOSS, NORM, SKIPPED, StepBatch, as_tensor

CONFIG = Config(model=SHAPE, optimizer=AdamWConfig(lr=1e-2))
WINDOWS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=100, tokenizer=small_tokenizer())
    return folder


def learner_of(micro_batch=2, **changes):
    """A Learner and nothing else: no data set, no folder, no lock."""
    ranks, config = start("cpu"), replace(CONFIG, **changes)
    plan = BatchPlan(SHAPE.context_length, WINDOWS, micro_batch, world_size=1)
    return build_learner(config, new_network(config, SHAPE, ranks), plan, ranks)


def batch_of(seed=0):
    """Eight windows of random ids."""
    generator = torch.Generator().manual_seed(seed)
    shape = (WINDOWS, SHAPE.context_length + 1)
    ids = torch.randint(0, 50257, shape, generator=generator).to(torch.uint16)
    return StepBatch(0, 0, ids.view(torch.int16))


def reference_step(model, windows, lr):
    """The same update in float64, all windows in one batch, with nothing of ours but the model."""
    model = copy.deepcopy(model).double()
    ids = torch.from_numpy(windows.numpy().view(np.uint16).astype(np.int64))
    logits = model(ids[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    groups = parameter_groups(model, CONFIG.optimizer.weight_decay)
    torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, foreach=False).step()
    return model, loss.item(), norm.item()


def test_a_step_with_accumulation_equals_a_plain_float64_step():
    learner, batch = learner_of(), batch_of()
    assert learner.plan.grad_accum_steps == 4
    expected, loss, norm = reference_step(learner.model, batch.windows, lr=1e-2)
    values = learner.step(batch, lr=1e-2)
    assert values[LOSS].item() == pytest.approx(loss, rel=1e-6)
    assert values[NORM].item() == pytest.approx(norm, rel=1e-5)
    assert (learner.updates, learner.consistent) == (1, True)
    for own, other in zip(learner.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own.double(), other, atol=2e-5, rtol=1e-4)


def test_another_micro_batch_gives_the_same_step():
    ends = []
    for micro_batch in (1, 8):
        learner = learner_of(micro_batch)
        for seed in range(3):
            learner.step(batch_of(seed), lr=1e-2)
        ends.append(learner.model.wte.weight.detach())
    torch.testing.assert_close(ends[0], ends[1], atol=1e-4, rtol=1e-3)


def test_a_step_that_is_not_finite_changes_no_weight_and_counts_as_an_update():
    learner = learner_of()
    good = learner.model.ln_f.weight.detach().clone()
    learner.model.ln_f.weight.data[0] = float("nan")
    before = copy.deepcopy(learner.model.state_dict())
    assert learner.step(batch_of(), lr=1e-2)[SKIPPED] == 1
    for name, weight in learner.model.state_dict().items():
        assert torch.equal(weight.nan_to_num(), before[name].nan_to_num()), name
    learner.model.ln_f.weight.data.copy_(good)
    assert learner.step(batch_of(), lr=1e-2)[SKIPPED] == 0
    assert learner.updates == 2


def test_a_skipped_step_of_a_run_takes_its_windows(data, tmp_path):
    run = built(
        tiny_config(data, tmp_path / "run", steps=1, schedule=ScheduleConfig(warmup_steps=0))
    )
    run.model.ln_f.weight.data[0] = float("nan")
    train(run)
    run.close()
    assert lines(run.folder.path)[0]["train/skipped"] == 1
    assert run.cursor.next_window == run.cursor.windows == run.plan.windows


def test_a_limit_skips_a_step_above_it():
    learner = learner_of()
    loss, norm = learner.step(batch_of(), lr=0.0)[[LOSS, NORM]].tolist()
    assert learner.step(batch_of(), 0.0, limits=(loss * 1.01, norm * 1.01))[SKIPPED] == 0
    assert learner.step(batch_of(), 0.0, limits=(loss * 0.99, norm * 1.01))[SKIPPED] == 1
    assert learner.step(batch_of(), 0.0, limits=(loss * 1.01, norm * 0.99))[SKIPPED] == 1


@pytest.mark.parametrize(("micro_batch", "passes"), [(2, [1, 2, 3, 4]), (8, [1])])
def test_one_micro_step_at_most_is_queued_behind_the_step_in_flight(micro_batch, passes):
    learner, done, waits = learner_of(micro_batch), [], []
    learner.step_model.register_forward_hook(lambda *_: done.append(1))
    learner.between_micro_steps = lambda: waits.append(len(done))
    learner.step(batch_of(), lr=1e-2)
    assert waits == passes


def test_a_hook_before_the_update_sees_the_old_weights_and_its_number():
    learner, seen = learner_of(), []
    before = learner.model.wte.weight.detach().clone()
    learner.before_update = lambda number: seen.append(
        (number, torch.equal(learner.model.wte.weight, before))
    )
    learner.step(batch_of(), lr=1e-2)
    assert seen == [(0, True)]


def test_out_of_memory_repeats_the_step_with_the_plan_that_the_hook_gives(monkeypatch):
    plain = learner_of(micro_batch=2).step(batch_of(), lr=1e-2)
    forward = NextTokenLoss.forward

    def small_memory(self, ids, targets):
        if len(ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, ids, targets)

    monkeypatch.setattr(NextTokenLoss, "forward", small_memory)
    learner = learner_of(micro_batch=8)
    learner.smaller_plan = lambda plan, error: replace(plan, micro_batch=plan.micro_batch // 2)
    assert torch.equal(learner.step(batch_of(), lr=1e-2), plain)
    assert learner.plan.micro_batch == 2


def test_without_a_hook_out_of_memory_is_an_error(monkeypatch):
    def no_memory(self, ids, targets):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(NextTokenLoss, "forward", no_memory)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        learner_of().step(batch_of(), lr=1e-2)


def test_a_trial_step_changes_no_bit():
    learner = learner_of()
    learner.step(batch_of(), lr=1e-2)
    state = copy.deepcopy((learner.model.state_dict(), learner.optimizer.state_dict()))
    learner.trial_step(batch_of(1).windows[:2])
    assert all(
        torch.equal(tensor, state[0][name]) for name, tensor in learner.model.state_dict().items()
    )
    moments = learner.optimizer.state_dict()["state"]
    for key, values in state[1]["state"].items():
        assert all(torch.equal(value, moments[key][name]) for name, value in values.items())


def test_a_run_that_stays_broken_stops_by_itself(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", steps=40)
    run = built(config)
    run.model.ln_f.weight.data[0] = float("nan")
    with pytest.raises(RuntimeError, match="10 steps in a row up to step 9 .* not finite"):
        train(run)
    run.close()
    skipped = [line["train/skipped"] for line in lines(config.out)]
    assert skipped == [1] * (MAX_SKIPPED_IN_A_ROW + 1)  # the next step was on its way


def test_a_run_in_bfloat16_learns_too(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", dtype="bfloat16", steps=8)
    run_to_end(config)
    found = [line["train/loss"] for line in lines(config.out) if "train/loss" in line]
    assert found[-1] < found[0] - 0.2


def test_a_run_takes_its_first_windows_from_the_stream(data, tmp_path):
    run = built(tiny_config(data, tmp_path / "run"))
    batch = run.loader.next_step()
    run.close()
    stream = run.data.stream(run.config.seed)
    expected = read_windows(stream, 0, run.plan.windows, run.plan.context_length)
    assert np.array_equal(batch.windows.numpy().view(np.uint16), expected)


def test_the_same_ids_in_four_bytes_give_the_same_update_bit_for_bit():
    narrow, learners = batch_of(), (learner_of(), learner_of())
    ids = narrow.windows.numpy().view(np.uint16).astype(np.uint32)
    for learner, batch in zip(learners, (narrow, StepBatch(0, 0, as_tensor(ids))), strict=True):
        values = learner.step(batch, lr=1e-2)
        assert float(values[LOSS]) > 0
    states = [learner.model.state_dict() for learner in learners]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())


def test_no_clipping_leaves_the_gradient_alone():
    learner = learner_of(optimizer=replace(CONFIG.optimizer, clip=None))
    values = learner.step(batch_of(), lr=0.0)
    norm = torch.nn.utils.get_total_norm([p.grad for p in learner.model.parameters()])
    assert norm.item() == pytest.approx(values[NORM].item(), rel=1e-6)
