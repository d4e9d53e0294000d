"""Samples during training: one file per step, and the same text in TensorBoard."""

import re
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eval.sampling.next_token import GenerateOptions
from eval.training_config import SampleConfig
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.eval_subjects import generate
from tests.launching import together
from tests.runs import built, flags, nano_config, run_to_end, tiny_config
from train.evaluation import shared_samples


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


def test_prompts_that_are_shared_out_have_the_texts_of_one_batch(config):
    run = built(replace(config, out=config.out.with_name("shared")))
    options = GenerateOptions(max_tokens=20, seed=5)
    wanted = generate(run.model, run.tokenizer, config.sample.prompts, options)
    assert shared_samples(run, 20, seed=5) == wanted
    run.close()


def test_two_ranks_write_the_texts_of_one_and_survive_one_that_cannot_sample(tmp_path):
    sample = SampleConfig(every=4, max_tokens=6, prompts=("a", "b", "c", ""))
    one = nano_config(tmp_path, sample=sample, reduction="tree")
    run_to_end(one)
    two = replace(one, out=tmp_path / "two")
    words = flags(two, "--sample.every", "4", "--sample.max-tokens", "6", "--reduction", "tree")
    words += ["--sample.prompts", *sample.prompts, "--no-rehearsal"]
    done = together(2, "tests/programs/failing_sampler.py", *words[1:])
    assert done.returncode == 0, done.stderr
    assert "sampling at step 4 failed (rank 1: no kernel image); training continues" in done.stdout
    texts = [
        {path.name: path.read_bytes() for path in (run.out / "samples").iterdir()}
        for run in (one, two)
    ]
    del texts[0]["step_000004.txt"]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2
