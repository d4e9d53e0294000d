"""--micro-batch auto: chosen once, kept by the run, halved when memory runs out."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from model.estimates.flops import training_flops_per_token
from model.estimates.largest_micro_batch import FAST_TOKENS
from model.estimates.updates import UpdateCost
from model.loss import NextTokenLoss
from model.shapes import SHAPES
from parallel.ranks import Ranks
from parallel.shared_errors import SharedError
from storage.atomic import read_json
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.launching import torchrun
from tests.programs.out_of_memory import without_memory
from tests.runs import alone, built, final_bytes, flags, lines, losses, nano_config, run_to_end
from train.batch_plan import BatchPlan
from train.config import Config
from train.memory import micro_batch
from train.memory.forecast import FIRST_STEPS
from train.memory.micro_batch import (
    choose_micro_batch,
    find_runnable_micro_batch,
    largest_that_runs,
    request_smaller_micro_batch,
)
from train.optimizers.muon import MuonConfig
from train.preflight.finished_run import FinishedRun
from train.preflight.inputs import check_inputs
from train.preflight.open_sizes import RecordedSizes

GIB = 2**30
SAVE = SaveConfig(every=2, every_minutes=0, keep=99)


def ranks(kind="cuda", world_size=1):
    return Ranks(0, world_size, 0, world_size, torch.device(kind))


def chosen(monkeypatch, memory, recorded=None, kind="cuda", world_size=1, **changes):
    """What a rank of GPT-2's reference run takes on a device with so much memory."""
    monkeypatch.setattr(micro_batch, "device_memory", lambda _: memory)
    config = Config(dtype="bfloat16", **changes)
    return choose_micro_batch(config, SHAPES["gpt2"], ranks(kind, world_size), recorded)


@pytest.mark.parametrize(("gib", "size"), [(131, 64), (74, 64), (40, 64), (22, 32), (8, 8)])
def test_a_gpu_takes_the_windows_that_fit_and_no_more_than_are_fast(monkeypatch, gib, size):
    assert chosen(monkeypatch, gib * GIB) == size


@pytest.mark.parametrize(("gib", "size"), [(131, 256), (74, 128)])
def test_the_number_that_is_fast_is_one_constant(monkeypatch, gib, size):
    monkeypatch.setitem(FAST_TOKENS, "cuda", 2**30)
    assert chosen(monkeypatch, gib * GIB) == size


def test_blocks_that_are_computed_again_let_more_windows_fit(monkeypatch):
    kept, again = (
        chosen(monkeypatch, 8 * GIB, recompute=how, fused_loss="on") for how in ("off", "blocks")
    )
    assert kept < again == 32


def test_what_divides_a_ranks_share_is_taken(monkeypatch):
    tokens = 48 * 1024
    assert chosen(monkeypatch, 131 * GIB, batch_tokens=tokens) == 16
    assert chosen(monkeypatch, 131 * GIB, world_size=3, batch_tokens=tokens) == 16
    assert chosen(monkeypatch, 131 * GIB, world_size=2, batch_tokens=tokens) == 8


def test_the_cpu_takes_no_more_than_is_fast(monkeypatch):
    assert chosen(monkeypatch, 1000 * GIB, kind="cpu") == 1
    monkeypatch.setitem(FAST_TOKENS, "cpu", 5000)
    assert chosen(monkeypatch, 1000 * GIB, kind="cpu") == 4


def test_for_a_tree_one_to_eight_ranks_take_the_same_and_a_run_keeps_it(monkeypatch):
    tree = {"batch_tokens": 64 * 1024, "reduction": "tree"}
    sizes = [chosen(monkeypatch, 74 * GIB, world_size=w, **tree) for w in (1, 2, 4, 8)]
    assert sizes == [8] * 4
    assert chosen(monkeypatch, 74 * GIB, world_size=16, **tree) == 4
    assert chosen(monkeypatch, GIB, 16, world_size=8, **tree) == 16
    assert chosen(monkeypatch, 74 * GIB, batch_tokens=6 * 1024, reduction="tree") == 1


def test_a_number_that_was_given_is_taken_as_it_is(monkeypatch):
    assert chosen(monkeypatch, GIB, micro_batch=48) == 48


def test_a_model_too_large_for_one_window_is_refused_before_anything_is_built(monkeypatch):
    with pytest.raises(ValueError, match=r"one window of .* needs 2\.\d GiB, the device has 1\.0"):
        chosen(monkeypatch, GIB)


@pytest.mark.parametrize(
    ("recorded", "world_size", "size"), [(32, 1, 32), (32, 32, 16), (12, 1, 8)]
)
def test_a_run_keeps_its_number_while_the_ranks_allow_it(monkeypatch, recorded, world_size, size):
    assert chosen(monkeypatch, 131 * GIB, recorded, world_size=world_size) == size


class Demanding(torch.nn.Module):
    """A network and its loss that hold at most so many windows."""

    def __init__(self, windows):
        super().__init__()
        self.weight, self.windows, self.tried = torch.nn.Parameter(torch.ones(3)), windows, []

    def forward(self, ids, targets):
        self.tried.append(len(ids))
        if len(ids) > self.windows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.weight.sum()


def test_a_choice_that_does_not_run_is_halved_before_the_first_step():
    step, plan = Demanding(windows=3), BatchPlan(16, 32, 8, 1)
    found = find_runnable_micro_batch(step, plan, torch.float32, alone(), UpdateCost(24, 12))
    assert found == replace(plan, micro_batch=2)
    assert step.tried == [8, 4, 2, 2]
    assert step.weight.grad is None


def test_a_trial_also_holds_what_the_optimizer_needs(monkeypatch):
    made, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda n, **kind: made.append(n) or empty(n, **kind))
    plan, cost = BatchPlan(16, 32, 8, 1), UpdateCost(state_bytes=1024, scratch_bytes=96)
    find_runnable_micro_batch(Demanding(8), plan, torch.float32, alone(), cost)
    assert made == [1024, 96]


def test_one_window_that_does_not_run_is_refused_with_the_cures():
    with pytest.raises(ValueError, match="one window at a time does not fit .*--context-length"):
        plan = BatchPlan(16, 32, 8, 1)
        find_runnable_micro_batch(Demanding(0), plan, torch.float32, alone(), UpdateCost(24))


def test_other_errors_of_an_attempt_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="device-side assert"):
        largest_that_runs(8, lambda n: (_ for _ in ()).throw(RuntimeError("device-side assert")))


def test_the_number_is_recorded_in_configuration_start_and_checkpoint(tmp_path):
    run = run_to_end(nano_config(tmp_path, micro_batch="auto", steps=3, save=SAVE))
    record = read_json(run.folder.config)
    [start] = map(json.loads, run.folder.starts.read_text().splitlines())
    state = read_json(run.folder.checkpoint(2) / "state.json")
    found = [record["config"], record["run"], start, state]
    assert [where["micro_batch"] for where in found] == [8] * 4


def test_a_resumed_run_takes_the_recorded_number_and_the_same_bits(tmp_path, monkeypatch):
    config = nano_config(tmp_path, micro_batch="auto", save=SAVE)
    run_to_end(config)
    straight = final_bytes(config.out)
    for checkpoint in RunFolder(config.out).all_checkpoints()[:2]:
        checkpoint.rename(tmp_path / checkpoint.name)
    monkeypatch.setitem(FAST_TOKENS, "cpu", 16)
    assert run_to_end(config).plan.micro_batch == 8
    assert final_bytes(config.out) == straight


def test_another_number_is_said_and_recorded(tmp_path, caplog):
    caplog.set_level("INFO")
    run_to_end(nano_config(tmp_path, micro_batch="auto", steps=3, save=SAVE))
    run = built(nano_config(tmp_path, micro_batch=2, steps=4, allow=("steps",)))
    run.close()
    assert "undisturbed run in the last bits: micro_batch 8 -> 2" in caplog.text
    changed = json.loads(run.folder.starts.read_text().splitlines()[-1])["changed"]
    assert {"key": "micro_batch", "before": 8, "now": 2} in changed


def test_a_step_out_of_memory_is_done_again_with_half_and_all_its_windows(
    tmp_path, monkeypatch, caplog
):
    plain = nano_config(tmp_path, micro_batch=2, steps=4)
    run_to_end(plain)
    config = replace(plain, out=tmp_path / "short", micro_batch="auto", save=SAVE)
    monkeypatch.setattr(NextTokenLoss, "forward", without_memory(0, windows=2))
    run = run_to_end(config)
    assert losses(config.out) == losses(plain.out)  # as if two had been the number from the start
    assert run.plan.micro_batch == run.eval_options.micro_batch == 2
    assert caplog.text.count("a break in bitwise identity") == 2  # 8 -> 4 -> 2
    assert read_json(run.folder.config)["run"]["micro_batch"] == 2
    noted = [json.loads(line) for line in run.folder.starts.read_text().splitlines()]
    assert [line["micro_batch"] for line in noted] == [8, 4, 2]
    assert check_inputs(config, alone()).plan.micro_batch == 2


@pytest.mark.parametrize(
    ("micro_batch", "message"),
    [(2, "--micro-batch 2 does not fit .*leave it out"), ("auto", "one window at a time .*--comp")],
)
def test_where_nothing_is_left_to_halve_the_cure_is_named(
    tmp_path, monkeypatch, micro_batch, message
):
    assert_memory_ends_the_run(nano_config(tmp_path, micro_batch=micro_batch), message, monkeypatch)


def test_in_a_tree_memory_that_runs_out_does_not_change_what_the_sums_are(tmp_path, monkeypatch):
    config = nano_config(tmp_path, micro_batch="auto", batch_tokens=256, reduction="tree")
    message = "micro-batch 2 does not fit .* --reduction tree never .*give --micro-batch 1, with"
    assert_memory_ends_the_run(config, message, monkeypatch)
    assert "next_micro_batch" not in read_json(config.out / "config.json")


def assert_memory_ends_the_run(config, message, monkeypatch):
    run = built(config)
    monkeypatch.setattr(NextTokenLoss, "forward", without_memory(0, windows=0))
    from train.loop import train

    with pytest.raises(torch.OutOfMemoryError, match=message):
        train(run)
    run.close()


def test_a_start_heeds_the_word_that_the_one_before_left(tmp_path):
    config = nano_config(tmp_path, micro_batch="auto")
    run = built(config)
    run.close()
    request_smaller_micro_batch(run.folder, run.plan)
    request_smaller_micro_batch(run.folder, run.plan)  # of another rank
    again = built(config)
    again.close()
    assert (run.plan.micro_batch, again.plan.micro_batch) == (8, 4)
    assert "next_micro_batch" not in read_json(run.folder.config)


def test_starts_that_each_take_half_are_not_given_up_and_the_others_are(tmp_path, monkeypatch):
    monkeypatch.setattr("train.recovery.restarts.FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("train.recovery.run_folder_start.is_restart", lambda: True)
    config, sizes = nano_config(tmp_path, micro_batch="auto", batch_tokens=16 * 64), []
    with pytest.raises(ValueError, match="started 4 times at step 0 without progress"):
        while True:
            shutil.rmtree(config.out / "tensorboard", ignore_errors=True)  # it waits for a second
            run = built(config)
            run.close()
            run.folder.write_status("failed", 0, "out of memory")
            request_smaller_micro_batch(run.folder, run.plan)
            sizes.append(run.plan.micro_batch)
    assert sizes == [64, 32, 16, 8, 4, 2, 1, 1, 1, 1]


def test_a_rank_that_reads_an_older_run_folder_does_as_rank_0_has_read(tmp_path, monkeypatch):
    read = (4, None, RecordedSizes(), FinishedRun(8, stopped=False))
    monkeypatch.setattr("train.preflight.inputs.on_main", lambda _: read)
    config = nano_config(tmp_path, micro_batch="auto")
    found = check_inputs(config, replace(alone(), rank=1))
    assert (found.plan.micro_batch, found.untried, found.finished) == (4, False, True)
    assert not config.out.exists()


def test_a_run_folder_that_rank_0_cannot_read_is_told_to_all(tmp_path, monkeypatch):
    config = nano_config(tmp_path, micro_batch="auto")
    built(config).close()
    (config.out / "config.json").write_text("{")
    with pytest.raises(SharedError, match="config.json"):
        check_inputs(config, alone())


@pytest.mark.slow
@pytest.mark.long
def test_one_of_two_ranks_out_of_memory_starts_all_again_with_half(tmp_path):
    config = nano_config(tmp_path, steps=6, batch_tokens=64, save=SAVE)
    words = flags(config, "--micro-batch", "auto", "--no-rehearsal")[1:]
    done = torchrun(2, "--max-restarts=1", "tests/programs/out_of_memory.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    starts = [json.loads(x) for x in (config.out / "starts.jsonl").read_text().splitlines()]
    assert [start["micro_batch"] for start in starts] == [2, 1]
    assert starts[1]["started_at_step"] > 0  # what was done before was saved
    assert "micro_batch 2 -> 1" in done.stdout
    assert [line["step"] for line in lines(config.out)] == list(range(7))


def test_the_first_steps_show_prediction_beside_measurement(tmp_path, caplog):
    caplog.set_level("INFO")
    config = nano_config(tmp_path)
    run_to_end(config)
    assert "predicted and measured: peak memory " in caplog.text
    told = [line for line in lines(config.out) if "speed/peak_memory_bytes" in line]
    assert [line["step"] for line in told] == [FIRST_STEPS - 1]
    assert told[0]["speed/predicted_memory_bytes"] > 0
    assert "the optimizer's update" not in caplog.text  # AdamW has no matrix products


def test_the_first_steps_show_what_muon_takes(tmp_path, caplog):
    caplog.set_level("INFO")
    modern = replace(SHAPES["modern"], n_layer=1, n_head=1, n_embd=8, context_length=16)
    run_to_end(nano_config(tmp_path, model=modern, optimizer=MuonConfig()))
    flops = 5 * (4 * 3 * 1024 + 2 * (2 * 4096 + 1024))
    passes = training_flops_per_token(replace(modern, vocab_size=300)) * 128
    share = flops / (flops + passes)
    assert f"the optimizer's update {share:.2%} of a rank's FLOPs" in caplog.text
