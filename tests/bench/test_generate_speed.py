"""Tests of bench/generate_speed.py: the rows of its table, with a tiny model."""

import torch

from bench.generate_speed import Arguments, measure, table_of
from data_prep.tokenizer import gpt2_tokenizer
from model.config import GPTConfig
from model.gpt import GPT


def test_every_round_gives_a_row_for_each_number_of_samples():
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, context_length=16))
    model.initialise(1)
    with torch.no_grad():
        model.wte.weight[gpt2_tokenizer().end_of_text] = 0
    arguments = Arguments(max_tokens=4, samples=(1, 2), rounds=2, probes=2)
    rows = measure(model, arguments)
    assert [row["samples"] for row in rows] == [1, 2, 1, 2]
    assert [(row["tokens_checked"], row["tokens_equal"]) for row in rows[:2]] == [(2, 2), (4, 4)]
    assert table_of(arguments, rows).splitlines()[3].startswith("| 2 | ")
