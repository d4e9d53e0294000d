"""Tests of bench/gpu/split_ways.py, on the CPU: the same bits in a tree, others with DDP."""

import pytest

from bench.gpu.split_ways import Arguments, is_same, table_of
from storage.atomic import read_json
from tests.launching import together

TOY = """
import sys
from bench.bare_run import NETWORKS
from model.config import GPTConfig
NETWORKS["toy"] = GPTConfig(n_layer=1, n_head=1, n_embd=8, context_length=16, vocab_size=300)
from bench.gpu.split_ways import main
main()
"""
FLAGS = ("--here", "--shape", "toy", "--device", "cpu", "--dtype", "float32", "--steps", "2")


def found(folder, processes, reduction):
    out = folder / f"{reduction}_{processes}.json"
    done = together(processes, "-c", TOY, *FLAGS, "--reduction", reduction, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return read_json(out)


def test_a_tree_has_the_same_bits_in_one_and_four_processes_and_ddp_has_not(tmp_path):
    tree = {str(n): found(tmp_path, n, "tree") for n in (1, 4)}
    assert is_same(*tree.values())
    assert table_of(tree).splitlines()[-1].endswith("| yes |")
    ddp = {str(n): found(tmp_path, n, "ddp") for n in (1, 2)}
    assert not is_same(*ddp.values())
    assert ddp["1"]["losses"] == pytest.approx(tree["1"]["losses"])
    assert table_of(ddp).splitlines()[-1].endswith("| **NO** |")


def test_ways_that_cannot_share_a_step_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ways=3 is no power of two that divides"):
        Arguments(tmp_path / "out.json", ways=(1, 3))
