"""Tests of bench/same_bits.py: what counts as the same bits, and its tables."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bench.same_bits import Arguments, Bits, Row, bits_of, difference, table_of
from train.command_line.parse import parse

LOSSES = (4.5, 4.25, 4.125)


def made_run(folder, losses=LOSSES, weight=1.0, moment=2.0, seconds=1.0):
    last = folder / "checkpoints" / "latest"
    last.mkdir(parents=True)
    save_file({"w": torch.tensor([weight])}, last / "model.safetensors")
    save_file({"w": torch.tensor([moment])}, last / "optimizer.safetensors")
    lines = [
        {"step": n, "train/loss": loss, "speed/seconds": seconds} for n, loss in enumerate(losses)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_runs_that_differ_in_speed_only_have_the_same_bits(tmp_path):
    one, two = made_run(tmp_path / "a"), made_run(tmp_path / "b", seconds=2.0)
    assert bits_of(one) == bits_of(two)
    assert difference(one, two) == {"first_step": None, "largest_relative_difference": 0.0}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("curve", {"losses": (4.5, 4.25, 4.125 + 2**-50)}),
        ("weights", {"weight": 1.0000001}),
        ("moments", {"moment": 2.0000002}),
    ],
)
def test_the_last_bit_of_anything_counts(tmp_path, field, change):
    one, two = bits_of(made_run(tmp_path / "a")), bits_of(made_run(tmp_path / "b", **change))
    assert [n for n in ("curve", "weights", "moments") if getattr(one, n) != getattr(two, n)] == [
        field
    ]
    assert one.short != two.short


def test_the_first_step_that_differs_is_named_with_the_largest_difference(tmp_path):
    other = made_run(tmp_path / "b", losses=(4.5, 4.25 * 1.01, 4.125 * 1.02))
    found = difference(made_run(tmp_path / "a"), other)
    assert found["first_step"] == 1
    assert found["largest_relative_difference"] == pytest.approx(0.02)


@pytest.mark.parametrize("reduction", ["tree", "ddp"])
def test_a_row_is_a_run_that_the_trainer_accepts(reduction, tmp_path):
    row = Row("demo", "bfloat16", reduction, 200)
    config = parse(row.words(Arguments(), tmp_path))
    found = config.reduction, config.dtype, config.steps, config.batch_tokens, config.micro_batch
    assert found == (reduction, "bfloat16", 200, 1024, 1)


def test_the_tables_say_which_rows_have_the_same_bits_and_where_the_control_differs():
    one, other = (
        {"curve": digits, "weights": "", "moments": "", "short": Bits(digits, "", "").short}
        for digits in "ab"
    )
    row = {"network": "demo", "dtype": "float32", "reduction": "tree", "steps": 9}
    found = {"first_step": 3, "largest_relative_difference": 1.25e-7}
    control = row | {
        "reduction": "ddp",
        "bits": {"1": one, "2": other},
        "differences": {"2": found},
    }
    rows = [
        row | {"bits": {"1": one, "2": one}, "same": True},
        row | {"bits": {"1": one, "2": other}, "same": False},
        control,
    ]
    lines = table_of(rows).splitlines()
    assert lines[2].endswith(f"`{one['short']}` | `{one['short']}` | yes |")
    assert lines[3].endswith("| **NO** |")
    assert lines[-1] == "| demo | 9 | 2 | of step 3 | 1.2e-07 |"
