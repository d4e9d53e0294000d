"""The weights of an average, and the checkpoint that has them."""

import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file

from eval.subject import EvalOptions, with_checkpoint_defaults
from model.averaging.record import average_record
from model.averaging.selection import read_members
from model.averaging.weighted_mean import ema_shares, mean_shares, write_average
from model.checkpoint import load_model
from model.hf_format.card import model_card
from storage.checkpoint_folder import verify_checkpoint, weights_sha256
from tests.launching import python
from tests.model.averaging.test_selection import new_checkpoint
from tests.runs import GOLDEN

RUN = GOLDEN.parent / "format_5" / "run"


@pytest.fixture
def members(tmp_path):
    paths = [new_checkpoint(tmp_path / f"step_{step:06d}", step) for step in (1, 2, 3)]
    return read_members(paths, other_runs=False)


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_mean_is_that_of_float64_rounded_once(members, tmp_path):
    write_average(members, mean_shares(3), tmp_path / "out", {"kind": "mean"})
    each = [weights(member.path) for member in members]
    for name, tensor in weights(tmp_path / "out").items():
        exact = torch.stack([one[name].double() for one in each]).mean(0)
        assert tensor.dtype == torch.float32
        assert_allclose(tensor, exact.float(), rtol=1.2e-7, atol=0)


def test_an_ema_counts_later_checkpoints_more_and_all_shares_are_one():
    assert ema_shares(3, 0.5) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert sum(ema_shares(50, 0.9)) == pytest.approx(1)
    assert ema_shares(4, 1 - 1e-9) == pytest.approx(mean_shares(4))


def test_shares_multiply_the_weights_in_the_order_of_steps(members, tmp_path):
    shares = ema_shares(3, 0.5)
    write_average(members, shares, tmp_path / "out", {"kind": "ema", "decay": 0.5})
    each = [weights(member.path) for member in members]
    found = weights(tmp_path / "out")["wte.weight"]
    parts = [share * one["wte.weight"] for share, one in zip(shares, each, strict=True)]
    assert_allclose(found, parts[0] + parts[1] + parts[2], rtol=1e-5, atol=1e-7)


def test_the_result_is_a_checkpoint_that_says_what_it_was_made_of(members, tmp_path):
    out = tmp_path / "out"
    write_average(members, mean_shares(3), out, {"kind": "mean"})
    verify_checkpoint(out)
    assert load_model(out).config == members[0].config
    found = average_record(out)
    assert [one["step"] for one in found["checkpoints"]] == [1, 2, 3]
    digests = [weights_sha256(member.path) for member in members]
    assert [one["weights_sha256"] for one in found["checkpoints"]] == digests
    assert "the weights are the mean of those at steps 1, 2, 3." in model_card(
        "out", out, members[0].config
    )


def test_nothing_is_left_behind_if_a_checkpoint_is_gone_or_the_folder_exists(members, tmp_path):
    (members[1].path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"step_000002 cannot be read .* name others"):
        write_average(members, mean_shares(3), tmp_path / "out", {"kind": "mean"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [m.path.name for m in members]


def test_the_script_averages_a_run_whose_data_the_evaluation_finds(tmp_path):
    out = tmp_path / "averaged"
    done = python("model/average.py", str(RUN), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "0.5000         2  " in done.stdout
    assert f"eval/main.py --checkpoint {out}" in done.stdout
    options = with_checkpoint_defaults(out, EvalOptions())
    recorded = with_checkpoint_defaults(RUN, EvalOptions())
    assert (options.data, options.val_tokens) == (recorded.data, recorded.val_tokens)
    again = python("model/average.py", str(RUN), "--out", str(out))
    assert (again.returncode, again.stdout) == (2, "")
    assert f"--out {out} exists already; give another folder" in again.stderr
