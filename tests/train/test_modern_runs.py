"""Every guard of a run stands with the modern network and Muon."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from storage.checkpoint_folder import write_manifest
from tests.faults import scaled, with_fault
from tests.launching import together
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
from train.checkpoints.host_copy import state_tensors
from train.config import SaveConfig
from train.loop import train
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig

SHORTCUTS = replace(MODERN, shortcuts=True)


def modern_config(folder, **changes):
    return nano_config(folder, **{"rehearsal": False} | RECIPES["modern"] | changes)


def ranks_to_end(count, config, *more):
    done = together(count, *flags(config, "--no-rehearsal", "--save.keep", "99", *more))
    assert done.returncode == 0, done.stdout + done.stderr


def state_of(run):
    state = state_tensors(run.model, run.learner.optimizer)
    return {name: tensor.clone() for name, tensor in state.items()}


# --- ranks -------------------------------------------------------------------------------------


def test_one_two_and_four_ranks_stay_equal_to_the_bit_and_read_the_same_tokens(tmp_path):
    """The ranks compare weights and momenta before every step, and end the run if they differ."""
    digests, curves = [], []
    for count in (1, 2, 4):
        config = modern_config(tmp_path / str(count), steps=50)
        ranks_to_end(count, config, "--guard.every", "1")
        digests.append([line.get("data/digest") for line in lines(config.out)])
        curves.append(losses(config.out))
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) == 51
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert curves[2] == pytest.approx(curves[0], rel=1e-3)


@pytest.mark.fault("R2", injected="four ranks, two, four again with Muon", lost="0", identical=True)
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
