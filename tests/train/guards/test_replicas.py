"""Replicas: one bit that differs on one rank is found before anything is saved."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.faults import flip_bit
from tests.launching import together
from tests.runs import GOLDEN as RECORDED
from tests.runs import RECIPES
from train.guards import replicas
from train.guards.replicas import checksum, disagreements

GOLDEN = 0x9E3779B97F4A7C15


@pytest.fixture(scope="module", params=RECIPES)
def found(request, tmp_path_factory):
    """The results of all scenes of tests/faults.py on two ranks."""
    folder = tmp_path_factory.mktemp("faults")
    data = shutil.copytree(RECORDED / "data_set", folder / "data")  # a run notes there what it read
    done = together(2, "tests/faults.py", str(data), str(folder), request.param)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text()) | {"recipe": request.param}


def reference(values, chunk):
    """The same checksum computed with Python integers."""
    data = values.tobytes()
    whole = len(data) // 8 * 8
    words = np.frombuffer(data[:whole], np.uint64).tolist()
    chunks = [words[i : i + chunk] for i in range(0, len(words), chunk)] or [[]]
    rest = data[whole:]
    chunks.append([int.from_bytes(rest, "little")] if rest else [])
    sums = [sum(w * (n * GOLDEN % 2**64 | 1) for n, w in enumerate(part)) for part in chunks]
    return sum(s * (n * GOLDEN % 2**64 | 1) for n, s in enumerate(sums)) % 2**64


@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40),
    chunk=st.integers(1, 50),
)
def test_the_checksum_is_exact_integer_arithmetic(values, chunk):
    array = np.array(values, np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "CPU_CHUNK", chunk)
        own = int(checksum(torch.from_numpy(array)))
    assert own % 2**64 == reference(array, chunk)


@given(place=st.integers(0, 1000), bit=st.integers(0, 31))
def test_any_single_bit_changes_the_checksum(place, bit):
    tensor = torch.linspace(-1, 1, 1001)
    before = int(checksum(tensor))
    tensor.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
    assert int(checksum(tensor)) != before


def test_exchanging_two_elements_changes_the_checksum():
    assert checksum(torch.tensor([1.0, 2.0])) != checksum(torch.tensor([2.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, torch.float32])
def test_every_type_and_a_scalar_have_a_checksum(dtype):
    assert checksum(torch.ones((), dtype=dtype)) != checksum(torch.zeros((), dtype=dtype))


def test_an_unaligned_tensor_has_the_checksum_of_its_copy():
    whole = torch.linspace(-1, 1, 1001)
    assert checksum(whole[1:]) == checksum(whole[1:].clone())


def test_without_a_majority_all_ranks_are_named():
    two = disagreements(torch.tensor([[5, 7], [5, 8]]), ["a", "b"])
    assert two == ["b differs between rank 0 and rank 1 (without a majority, any may be wrong)"]
    four = disagreements(torch.tensor([[1], [2], [1], [2]]), ["a"])
    sentence = "a differs between rank 0, 2 and rank 1, 3 (without a majority, any may be wrong)"
    assert four == [sentence]


def test_the_different_rank_of_three_is_named_with_the_tensor():
    table = torch.tensor([[5, 7], [5, 8], [5, 7]])
    assert disagreements(table, ["a", "b"]) == ["b differs on rank 1"]


@pytest.mark.fault("N3", injected="one bit of a weight, or of Muon's momentum, on rank 1")
def test_a_flipped_bit_stops_both_ranks_before_the_next_checkpoint(found):
    flip = found["flip"]
    assert flip["steps"] == [4, 4]
    assert flip["saved"] == [3, 2, 1]
    kind = "weights" if found["recipe"] == "gpt2" else "optimizer.momentum"
    for end in flip["ends"]:
        assert f"{kind}.h.1.mlp.c_fc.weight differs between rank 0 and rank 1" in end


def test_an_update_needs_no_other_rank(found):
    assert found["alone"]["ends"] == ["finished", "finished"]
    assert found["alone"]["equal"]


@pytest.mark.fault("P8", injected="300 ms more in each step of rank 1", lost="0")
def test_a_slow_rank_is_named_with_its_ratio(found):
    assert any(
        "rank 1 computes" in text and "times the median" in text
        for text in found["slow"]["messages"]
    )
    assert not any("rank 0 computes" in text for text in found["slow"]["messages"])
    assert found["slow"]["ends"] == ["finished", "finished"]


@pytest.mark.fault("N1", injected="NaN in the loss of rank 1 of two", lost="0")
def test_nan_on_one_rank_is_skipped_on_both_and_the_next_step_is_not(found):
    nan = found["nan"]
    assert [line.get("train/skipped") for line in nan["lines"]] == [0, 0, 0, 1, 0, 0, 0, 0, None]
    assert nan["equal"]
    assert nan["ends"] == ["finished", "finished"]


@pytest.mark.fault("N2", injected="loss times 10,000 on rank 1 of two")
def test_a_spike_on_one_rank_is_skipped_on_both(found):
    spike = found["spike"]
    skipped = [line["step"] for line in spike["lines"] if line.get("train/skipped")]
    assert skipped == [12]
    assert spike["equal"]
    assert spike["boxes"] == ["step_000012"]


@pytest.mark.fault("N1", injected="NaN in a weight: every step is bad")
def test_ranks_that_stay_broken_stop_together_with_a_black_box(found):
    poison = found["poison"]
    assert poison["steps"] == [11, 11]
    assert poison["boxes"] == ["step_000009"]
    assert all("10 steps in a row up to step 9" in end for end in poison["ends"])


def test_skipped_windows_are_the_same_on_two_ranks(found):
    first = [line.get("data/first_window") for line in found["skips"]["lines"]]
    assert first == [0, 8, 50, 58, 66, 74, 82, 90, None]


def test_a_dry_run_on_two_ranks_does_not_change_training(found):
    assert any(text.startswith("  training step, check") for text in found["dry_run"]["messages"])
    assert found["dry_run"]["sums"] == found["plain"]["sums"]


def test_flipping_a_bit_changes_one_number():
    tensor = torch.ones(3)
    flip_bit(tensor, bit=22)
    assert tensor.tolist() == [1.5, 1.0, 1.0]
