"""Every guard of a run stands with the modern network and Muon."""

import gzip
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.training_config import EvalConfig, SampleConfig
from model.loss import NextTokenLoss
from storage.atomic import read_json
from storage.checkpoint_folder import write_manifest
from storage.retention import SaveConfig
from tests.faults import scaled, with_fault
from tests.launching import python, together
from tests.programs.out_of_memory import without_memory
from tests.runs import (
    KEEP_ALL,
    MODERN,
    RECIPES,
    built,
    deterministic,
    final_bytes,
    flags,
    forget_after,
    lines,
    losses,
    nano_config,
    run_to_end,
    starts,
)
from train import replay as replay_script
from train.checkpoints import config_changes
from train.checkpoints.checkpoint import write_checkpoint
from train.checkpoints.host_copy import state_tensors
from train.checks import StopTraining
from train.guards.spikes import GuardConfig
from train.loop import train
from train.optimizers import muon
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.preflight.dry_run import dry_run
from train.recovery.ending import finish
from train.schedule import ScheduleConfig

SHORTCUTS = replace(MODERN, shortcuts=True)
LONGER = replace(MODERN, context_length=64)  # for questions


def modern_config(folder, **changes):
    return nano_config(folder, **{"rehearsal": False} | RECIPES["modern"] | changes)


def ranks_to_end(count, config, *more):
    done = together(count, *flags(config, "--no-rehearsal", "--save.keep", "99", *more))
    assert done.returncode == 0, done.stdout + done.stderr


def state_of(run):
    state = state_tensors(run.model, run.learner.optimizer)
    return {name: tensor.clone() for name, tensor in state.items()}


# --- ranks -------------------------------------------------------------------------------------


@pytest.mark.long
def test_one_two_and_four_ranks_stay_equal_to_the_bit_and_read_the_same_tokens(tmp_path):
    """The ranks compare weights and momenta before every step, and end the run if they differ."""
    digests, curves = [], []
    for count in (1, 2, 4):
        config = modern_config(tmp_path / str(count), steps=24)
        ranks_to_end(count, config, "--guard.every", "1")
        digests.append([line.get("data/digest") for line in lines(config.out)])
        curves.append(losses(config.out))
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) == 25
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert curves[2] == pytest.approx(curves[0], rel=1e-3)


@pytest.mark.fault("R2", injected="four ranks, two, four again with Muon", lost="0", identical=True)
@pytest.mark.long
def test_four_ranks_then_two_then_four_read_the_same_tokens_and_repeat_to_the_bit(tmp_path):
    config = modern_config(tmp_path, steps=12, save=KEEP_ALL)
    ranks_to_end(4, config)
    straight = lines(config.out)
    forget_after(config.out, 4)
    ranks_to_end(2, config)
    ends = []
    for _ in range(2):
        forget_after(config.out, 8)
        ranks_to_end(4, config)
        ends.append(([deterministic(line) for line in lines(config.out)], final_bytes(config.out)))
    assert starts(config.out) == [0, 4, 8, 8]
    assert ends[0] == ends[1]
    digests = [[line.get("data/digest") for line in run] for run in (straight, ends[0][0])]
    assert digests[0] == digests[1]
    curve = [line["train/loss"] for line in straight if "train/loss" in line]
    assert losses(config.out) == pytest.approx(curve, rel=1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_ranks_on_different_processors_are_warned_of_where_matrix_products_count(
    tmp_path, monkeypatch, caplog, recipe
):
    monkeypatch.setattr(config_changes, "all_gather_object", lambda _: ["H200", "H100", "H100"])
    built(replace(nano_config(tmp_path), **RECIPES[recipe])).close()
    said = "the ranks compute on H100, H200: Muon's matrix products may differ"
    assert (said in caplog.text) == (recipe == "modern")


# --- updates -----------------------------------------------------------------------------------


def test_the_updates_of_a_real_run_have_singular_values_near_one(tmp_path):
    """Those of values below a thousandth of the momentum's norm stay smaller, as they should."""
    optimizer, schedule = MuonConfig(weight_decay=0.0), ScheduleConfig("constant", warmup_steps=0)
    run = built(modern_config(tmp_path, optimizer=optimizer, schedule=schedule, steps=7))
    states = {}
    run.learner.before_update = lambda number: states.setdefault(number, state_of(run))
    train(run)
    run.close()
    moved = {step: singular_values(states[step], states[step + 1]) for step in (0, 1, 5)}
    assert not any(values.any() for values in moved[0].values())
    late = ("c_attn", "c_fc")  # what has a gradient from the third step on only
    assert {name for name, values in moved[1].items() if values.any()} == {
        name for name in moved[1] if not any(part in name for part in late)
    }
    for values in moved[5].values():
        assert (values.max() < 1.15, values.median() > 0.85) == (True, True)


def singular_values(before, after):
    """Those of each update of a matrix, without learning rate and scale."""
    found = {}
    for name in (name for name in before if name.startswith("weights.h.")):
        stacked = 3 if "c_attn" in name else 1  # query, key and value
        for part, change in enumerate((before[name] - after[name]).double().chunk(stacked)):
            rows, columns = change.shape
            scale = MuonConfig().lr * max(1, rows / columns) ** 0.5
            found[f"{name} {part}"] = torch.linalg.svdvals(change) / scale
    return found


# --- checkpoints -------------------------------------------------------------------------------


@pytest.mark.fault("R1", injected="resumed at 3 of 7 steps with Muon", lost="0", identical=True)
@pytest.mark.parametrize("shape", [MODERN, replace(SHORTCUTS, n_layer=1)])
def test_a_run_resumed_at_any_step_ends_with_the_same_bits(tmp_path, shape):
    """Also at its first steps, in which most momenta are still zero."""
    config = modern_config(tmp_path, steps=7, save=SaveConfig(1, 0, keep=99), model=shape)
    run_to_end(config)
    wanted = [deterministic(line) for line in lines(config.out)], final_bytes(config.out)
    for step in (5, 2, 1):
        forget_after(config.out, step)
        run_to_end(config)
        found = [deterministic(line) for line in lines(config.out)], final_bytes(config.out)
        assert (starts(config.out)[-1], found) == (step, wanted)


@pytest.mark.fault("N1", injected="NaN in the first step, then a resume", lost="0", identical=True)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_checkpoint_after_a_skipped_first_step_is_whole_and_resumed_from(tmp_path, recipe):
    config = nano_config(tmp_path, save=SaveConfig(1, 0, keep=99), steps=4, rehearsal=False)
    config = replace(config, **RECIPES[recipe])
    run = with_fault(built(config), scaled(0, float("nan")))
    train(run)
    run.close()
    assert lines(config.out)[0]["train/skipped"] == 1
    found = load_file(config.out / "checkpoints" / "step_000001" / "optimizer.safetensors")
    assert found
    assert not any(tensor.any() for tensor in found.values())
    wanted = losses(config.out)[1:], final_bytes(config.out)
    forget_after(config.out, 1)
    run_to_end(config)
    assert starts(config.out) == [0, 1]
    assert (losses(config.out)[1:], final_bytes(config.out)) == wanted


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_checkpoint_before_the_first_step_has_no_state_and_is_resumed_from(tmp_path, recipe):
    config = replace(nano_config(tmp_path, steps=3, rehearsal=False), **RECIPES[recipe])
    run_to_end(config)
    other = replace(config, out=tmp_path / "other")
    run = built(other)
    path = write_checkpoint(run.folder, run.contents(state_of(run)))
    run.close()
    assert load_file(path / "optimizer.safetensors") == {}
    run_to_end(other)
    assert (losses(other.out), final_bytes(other.out)) == (
        losses(config.out),
        final_bytes(config.out),
    )
    assert not list(other.out.glob("checkpoints/*.broken"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps, of which every second was saved."""
    config = modern_config(tmp_path_factory.mktemp("finished"), steps=4, save=KEEP_ALL)
    run_to_end(config)
    return config


@pytest.fixture
def config(finished, tmp_path):
    """A copy of it that is to be continued."""
    shutil.copytree(finished.out, tmp_path / "run", symlinks=True)
    return replace(modern_config(tmp_path, save=KEEP_ALL), allow=("steps",))


def test_a_checkpoint_has_one_momentum_of_each_matrix_and_two_moments_of_the_rest(finished):
    found = load_file(finished.out / "checkpoints" / "latest" / "optimizer.safetensors")
    kept = {}
    for name, tensor in found.items():
        key, _, parameter = name.partition(".")
        kept.setdefault(parameter, set()).add(key)
        assert tensor.dtype == torch.float32
    adamw = {"exp_avg", "exp_avg_sq", "step"}
    ends = ("wte.weight", "lm_head.weight")
    assert {name: keys for name, keys in kept.items() if keys != {"momentum"}} == {
        name: adamw for name in ends
    }
    assert len(kept) == 2 + 4 * MODERN.n_layer


def without_a_momentum(tensors):
    del tensors["momentum.h.1.mlp.c_proj.weight"]


def without_a_moment_of_the_head(tensors):
    del tensors["exp_avg.lm_head.weight"]


def momentum_under_another_parameter(tensors):
    tensors["momentum.wte.weight"] = tensors["exp_avg.wte.weight"].clone()


def state_of_adamw(tensors):
    for name in [name for name in tensors if name.startswith("momentum.")]:
        tensor, parameter = tensors.pop(name), name.removeprefix("momentum.")
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}.{parameter}"] = tensor.clone()
        tensors[f"step.{parameter}"] = torch.tensor(4.0)


@pytest.mark.fault("S2", injected="a part of Muon's state missing or foreign", lost="interval")
@pytest.mark.parametrize(
    ("damage", "text", "names"),
    [
        (without_a_momentum, "lacks 1 of 14 tensors", "(momentum.h.1.mlp.c_proj.weight)"),
        (without_a_moment_of_the_head, "lacks 1 of 14 tensors", "(exp_avg.lm_head.weight)"),
        (momentum_under_another_parameter, "has 1 tensors that", "(momentum.wte.weight)"),
        (state_of_adamw, "lacks 8 of 14 tensors", "(momentum.h.0.attn.c_attn.weight, "),
    ],
)
def test_a_checkpoint_with_another_state_than_muons_is_not_resumed_from(
    config, damage, text, names, caplog
):
    newest = config.out / "checkpoints" / "step_000004"
    path = newest / "optimizer.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    write_manifest(newest)
    run = built(config)
    run.close()
    assert run.step == 2
    assert (text in caplog.text, names in caplog.text) == (True, True)
    assert newest.with_name("step_000004.broken").is_dir()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.double(), "is torch.float64 but must be torch.float32; use another"),
        (lambda t: t.bfloat16(), "is torch.bfloat16 but must be torch.float32; use another"),
        (lambda t: t.T.contiguous(), r"of shape \(64, 16\) matches no parameter; use a checkpoint"),
    ],
)
def test_a_momentum_of_another_type_or_shape_is_refused(config, change, text):
    newest = config.out / "checkpoints" / "step_000004"
    path, name = newest / "optimizer.safetensors", "momentum.h.0.mlp.c_proj.weight"
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name])}, path)
    write_manifest(newest)
    with pytest.raises(ValueError, match=f"{name} {text}"):
        built(config)


@pytest.mark.fault("R4", injected="another optimizer on a resume, both ways")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_is_not_continued_with_another_optimizer(tmp_path, recipe):
    config = nano_config(tmp_path, steps=3, **RECIPES[recipe])
    run_to_end(config)
    other = AdamWConfig() if recipe == "modern" else MuonConfig()
    with pytest.raises(ValueError, match=r"optimizer.name can never change .*choose another --out"):
        built(replace(config, optimizer=other, steps=6, allow=("steps", "optimizer")))


@pytest.mark.fault("P9", injected="an error inside Muon's update", lost="interval", identical=True)
def test_what_ends_inside_an_update_is_never_saved_and_the_run_repeats_to_the_bit(
    tmp_path, monkeypatch
):
    """AdamW's part of the update is done by then."""
    config = modern_config(tmp_path, steps=6, save=KEEP_ALL)
    run_to_end(config)
    wanted = losses(config.out), final_bytes(config.out)
    forget_after(config.out, 2)

    def fail(u):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    run = built(config)
    run.learner.before_update = lambda number: (
        monkeypatch.setattr(muon, "orthogonal", fail) if number == 5 else None
    )
    with pytest.raises(torch.OutOfMemoryError):
        finish(run)
    monkeypatch.undo()
    assert (run.step, run.learner.consistent) == (5, False)
    assert not (config.out / "checkpoints" / "step_000005").exists()
    run_to_end(config)
    assert starts(config.out) == [0, 2, 4]
    assert (losses(config.out), final_bytes(config.out)) == wanted


@pytest.mark.fault("P1", injected="a peer dies after an update of Muon", lost="0", identical=True)
def test_after_a_whole_update_the_emergency_checkpoint_continues_to_the_bit(tmp_path):
    config = modern_config(tmp_path, steps=6)
    run_to_end(config)
    wanted = losses(config.out), final_bytes(config.out)
    other = replace(config, out=tmp_path / "other")
    run = built(other)
    run.learner.before_update = lambda number: exit_as_after_a_lost_peer() if number == 3 else None
    with pytest.raises(ConnectionError):
        finish(run)
    assert (other.out / "checkpoints" / "step_000003").is_dir()
    run_to_end(other)
    assert starts(other.out) == [0, 3]
    assert (losses(other.out), final_bytes(other.out)) == wanted


def exit_as_after_a_lost_peer():
    raise ConnectionError("Connection closed by peer")


# --- a bad step --------------------------------------------------------------------------------


@pytest.mark.fault("N2", injected="a spike of a run with Muon", lost="0", identical=True)
def test_a_skipped_spike_leaves_weights_and_momenta_as_they_are(tmp_path):
    guard = GuardConfig(window=8, skip_spikes=6)
    run = with_fault(built(modern_config(tmp_path, steps=16, guard=guard)), scaled(12, 1e4))
    states = {}
    run.learner.before_update = lambda number: states.setdefault(number, state_of(run))
    train(run)
    run.close()
    assert [line["step"] for line in lines(run.folder.path) if line.get("train/skipped")] == [12]
    assert all(torch.equal(tensor, states[13][name]) for name, tensor in states[12].items())
    assert not all(torch.equal(tensor, states[14][name]) for name, tensor in states[13].items())


@pytest.mark.parametrize(
    "changes", [{}, {"dtype": "bfloat16", "mask_documents": True}, {"model": SHORTCUTS}]
)
def test_a_replay_of_a_spike_computes_the_numbers_of_the_box_again(tmp_path, monkeypatch, changes):
    """With soft-capped logits and masked documents too; the spike was made up."""
    guard = GuardConfig(window=8, skip_spikes=6)
    config = modern_config(tmp_path, steps=14, guard=guard, **changes)
    run = with_fault(built(config), scaled(12, 1e4))
    train(run)
    run.close()
    box = config.out / "blackbox" / "step_000012"
    found, again = read_json(box / "box.json"), []
    score = replay_script.score_windows
    monkeypatch.setattr(
        replay_script, "score_windows", lambda *words: again.append(score(*words)) or again[0]
    )
    assert not replay_script.replay(replay_script.Arguments(box, device="cpu"))
    assert [(f["loss"], f["grad_norm"]) for f in found["findings"]] == [
        (f.loss, f.grad_norm) for f in again[0].windows
    ]


@pytest.mark.parametrize(
    ("value", "name", "broken_at"),
    [
        (float("nan"), "h.1.mlp.c_fc", "h.1.mlp.c_fc"),
        (float("inf"), "lm_head", "the gradient only"),
        (float("inf"), "wte", "wte"),
    ],
)
def test_a_broken_weight_is_not_hidden_by_the_soft_cap(tmp_path, value, name, broken_at):
    """The soft-cap makes an infinite logit finite, and the gradient shows it all the same."""
    run = built(modern_config(tmp_path, steps=40))
    run.model.get_submodule(name).weight.data[:, 0] = value
    with pytest.raises(StopTraining, match=r"10 steps in a row .*not finite"):
        train(run)
    run.close()
    box = run.folder.path / "blackbox" / "step_000009"
    places = {finding["broken_at"] for finding in read_json(box / "box.json")["findings"]}
    assert broken_at in places
    assert replay_script.replay(replay_script.Arguments(box, device="cpu"))


# --- before the first step, and options of a run ------------------------------------------------


EVAL = EvalConfig(every=2, val_tokens=64, tasks_every=4, tasks=("pydoc_choice",), items=2)
SAMPLE = SampleConfig(every=4, prompts=("a", ""), max_tokens=4)


def test_a_dry_run_changes_no_bit_of_a_run_that_evaluates_and_samples(tmp_path):
    plain = modern_config(tmp_path, model=LONGER, eval=EVAL, sample=SAMPLE, steps=4)
    run_to_end(plain)
    rehearsed = replace(plain, out=tmp_path / "rehearsed", rehearsal=True)
    run = built(rehearsed)
    before = state_of(run)
    dry_run(run)
    after = state_of(run)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(after[name].any() for name in after.keys() - before.keys())
    train(run)
    run.close()
    found = [[deterministic(line) for line in lines(c.out)] for c in (plain, rehearsed)]
    assert found[0] == found[1]
    assert final_bytes(plain.out) == final_bytes(rehearsed.out)


def test_a_step_out_of_memory_is_done_again_with_half_and_the_same_bits(tmp_path, monkeypatch):
    plain = modern_config(tmp_path, micro_batch=2, steps=4)
    run_to_end(plain)
    config = replace(plain, out=tmp_path / "short", micro_batch="auto")
    monkeypatch.setattr(NextTokenLoss, "forward", without_memory(0, windows=2))
    assert run_to_end(config).plan.micro_batch == 2
    assert losses(config.out) == losses(plain.out)
    assert final_bytes(config.out) == final_bytes(plain.out)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "residual": "bfloat16", "model": SHORTCUTS},
        {"fused_loss": "off"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_run_learns_and_repeats_to_the_bit_with(tmp_path, changes):
    config = modern_config(tmp_path, save=SaveConfig(6, 0, keep=9), steps=12, **changes)
    run_to_end(config)
    curve, bits = losses(config.out), final_bytes(config.out)
    assert curve[-1] < curve[0] - 0.5
    forget_after(config.out, 6)
    run_to_end(config)
    assert (losses(config.out), final_bytes(config.out)) == (curve, bits)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_a_compiled_run_has_the_losses_of_a_plain_one_and_repeats_to_the_bit(tmp_path):
    config = modern_config(tmp_path, save=SaveConfig(4, 0, keep=9), compile="on", model=SHORTCUTS)
    run_to_end(config)
    curve, bits = losses(config.out), final_bytes(config.out)
    plain = replace(config, out=tmp_path / "plain", compile="off")
    run_to_end(plain)
    assert curve == pytest.approx(losses(plain.out), rel=1e-4)
    forget_after(config.out, 4)
    run_to_end(config)
    assert (losses(config.out), final_bytes(config.out)) == (curve, bits)


def test_the_loss_with_and_without_fusing_is_the_same_to_rounding(tmp_path):
    curves = []
    for fused in ("on", "off"):
        config = modern_config(tmp_path / fused, fused_loss=fused)
        run_to_end(config)
        curves.append(losses(config.out))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_replicas_with_compressed_gradients_and_shortcuts_are_equal_to_the_bit(tmp_path):
    more = ("--guard.every", "1", "--gradient-compression", "bfloat16", "--model.shortcuts")
    ranks_to_end(2, modern_config(tmp_path), *more)


def test_a_profile_of_some_steps_shows_the_update(tmp_path):
    config = modern_config(tmp_path, profile="2:4", steps=5)
    run_to_end(config)
    trace = gzip.decompress((config.out / "profile_2_4.json.gz").read_bytes())
    assert b"Optimizer.step#Muon.step" in trace


def test_the_doctor_finds_a_modern_run_ready_to_start(tmp_path):
    done = python("train/doctor.py", *flags(modern_config(tmp_path))[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ready to start" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_watcher_gives_the_numbers_of_the_training_loop_and_compare_pairs_them(tmp_path):
    save = SaveConfig(every=4, every_minutes=0, keep=9)
    schedule = ScheduleConfig("constant", warmup_steps=0)  # so no step is kept for a branch
    changes = {"eval": replace(EVAL, every=4), "save": save, "schedule": schedule}
    config = modern_config(tmp_path, model=LONGER, **changes)
    run_to_end(config)
    items = tmp_path / "items"
    done = python("eval/main.py", "--watch", str(config.out), "--items-out", str(items))
    assert done.returncode == 0, done.stdout + done.stderr
    measured = {line["step"]: line for line in lines(config.out)}
    evaluated = [json.loads(line) for line in (config.out / "evals.jsonl").read_text().splitlines()]
    assert sorted(found["step"] for found in evaluated) == [4, 8]
    for found in evaluated:
        assert found["val/loss"] == measured[found["step"]]["val/loss"]
        assert found["pydoc_choice/acc_norm"] == measured[found["step"]]["pydoc_choice/acc_norm"]
    done = python("eval/compare.py", *map(str, sorted(items.iterdir())))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pydoc_choice" in done.stdout
