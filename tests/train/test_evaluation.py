"""Samples during training: one file per step, and the same text in TensorBoard."""

import re
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.data_sets import small_tokenizer, tiny_data_set
from tests.runs import run_to_end, tiny_config
from train.config import SampleConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    tiny_data_set(folder / "data", documents=100, tokenizer=small_tokenizer())
    sample = SampleConfig(every=4, max_tokens=20, prompts=("A list", "", "word " * 30))
    config = replace(tiny_config(folder / "data", folder / "run", steps=8), sample=sample)
    run_to_end(config)
    return config


def test_each_step_with_samples_writes_one_file(config):
    files = sorted((config.out / "samples").iterdir())
    assert [file.name for file in files] == [f"step_{step:06d}.txt" for step in (0, 4, 8)]
    pages = [file.read_text(encoding="utf-8") for file in files]
    assert len(set(pages)) == 3
    for page in pages:
        assert page.startswith("> A list\n")
        assert "> <|endoftext|>\n" in page


def test_tensorboard_shows_the_same_texts(config):
    events = EventAccumulator(str(config.out / "tensorboard")).Reload()
    points = events.Tensors("samples/text_summary")
    assert [point.step for point in points] == [0, 4, 8]
    for point in points:
        page = (config.out / "samples" / f"step_{point.step:06d}.txt").read_text(encoding="utf-8")
        [shown] = point.tensor_proto.string_val
        words = re.findall(r"[a-zA-Z]+", re.sub(r"&\w+;", " ", shown.decode()))
        wanted = page.replace("<|endoftext|>", "new document:")
        assert words == re.findall(r"[a-zA-Z]+", wanted)
