"""One training step against a plain float64 reference, and what happens when it is not finite."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_prep.order.training_stream import TrainingStream, read_windows
from tests.data_sets import tiny_data_set
from tests.faults import with_fault
from tests.runs import built, lines, run_to_end, tiny_config
from train.guards.spikes import MAX_SKIPPED_IN_A_ROW
from train.loop import train
from train.optimizers.adamw import parameter_groups
from train.progress import LOSS, NORM, SKIPPED
from train.step import train_step


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder, documents=100)
    return folder


@pytest.fixture
def run(data, tmp_path):
    ready = built(tiny_config(data, tmp_path / "run"))
    yield ready
    ready.close()


def reference_step(run, lr):
    """The same update in float64, all windows in one batch, with nothing of ours but the model."""
    model = copy.deepcopy(run.model).double()
    stream = TrainingStream(run.data.split("train"), run.config.seed)
    windows = read_windows(stream, 0, run.plan.windows, run.plan.context_length)
    ids = torch.from_numpy(windows.astype(np.int64))
    logits = model(ids[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    groups = parameter_groups(model, run.config.optimizer.weight_decay)
    torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, foreach=False).step()
    return model, loss.item(), norm.item()


def test_a_step_with_accumulation_equals_a_plain_float64_step(run):
    assert run.plan.grad_accum_steps == 4
    expected, loss, norm = reference_step(run, lr=1e-2)
    values = train_step(run, run.loader.next_step(), 1e-2, stop_wanted=False)
    assert values[LOSS].item() == pytest.approx(loss, rel=1e-6)
    assert values[NORM].item() == pytest.approx(norm, rel=1e-5)
    for own, other in zip(run.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own.double(), other, atol=2e-5, rtol=1e-4)


def test_another_micro_batch_gives_the_same_step(data, tmp_path):
    ends = []
    for micro_batch in (1, 8):
        config = tiny_config(data, tmp_path / str(micro_batch), micro_batch=micro_batch, steps=3)
        ends.append(run_to_end(config).model.wte.weight.detach())
    torch.testing.assert_close(ends[0], ends[1], atol=1e-4, rtol=1e-3)


def test_a_step_that_is_not_finite_changes_nothing_but_the_cursor(run):
    good = run.model.ln_f.weight.detach().clone()
    run.model.ln_f.weight.data[0] = float("nan")
    before = copy.deepcopy(run.model.state_dict())
    values = train_step(run, run.loader.next_step(), 1e-2, stop_wanted=False)
    assert values[SKIPPED] == 1
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight.nan_to_num(), before[name].nan_to_num()), name
    run.model.ln_f.weight.data.copy_(good)
    assert train_step(run, run.loader.next_step(), 1e-2, stop_wanted=False)[SKIPPED] == 0
    assert run.loader.next_window == 2 * run.plan.windows


@pytest.mark.parametrize(("micro_batch", "passes"), [(2, [1, 2, 3, 4]), (8, [1])])
def test_one_micro_step_at_most_is_queued_behind_the_step_in_flight(
    data, tmp_path, micro_batch, passes
):
    done = []
    run = built(tiny_config(data, tmp_path / "run", micro_batch=micro_batch))
    with_fault(run, lambda _, loss: (done.append(1), loss)[1])
    waits = []
    run.progress.wait = lambda: waits.append((len(done), run.step))
    train_step(run, run.loader.next_step(), 1e-2, stop_wanted=False)
    run.close()
    assert waits == [(passed, 0) for passed in passes]


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


def test_no_clipping_leaves_the_gradient_alone(data, tmp_path):
    config = tiny_config(data, tmp_path / "run")
    config = replace(config, optimizer=replace(config.optimizer, clip=None))
    run = built(config)
    values = train_step(run, run.loader.next_step(), 0.0, stop_wanted=False)
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()])
    run.close()
    assert norm.item() == pytest.approx(values[NORM].item(), rel=1e-6)
