"""Digests of checkpoints: of the tensors alone, chained, and the same after a resume."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from storage.atomic import read_json
from tests.runs import KEEP_ALL, forget_after, nano_config, run_to_end
from train.checkpoints.state_digest import (
    chain_digest,
    read_digest,
    saved_tensors,
    tensors_digest,
)

TENSORS = {"a": torch.arange(4.0), "b": torch.ones(2, 3)}


def chain_of(folder):
    """The lines of a digests.jsonl by step; of those of one step the last."""
    lines = (folder / "digests.jsonl").read_text().splitlines()
    return {line["step"]: line for line in map(json.loads, lines)}


@pytest.mark.parametrize(
    "changed",
    [
        {"a": torch.arange(4.0).double()},
        {"a": torch.arange(4.0).view(2, 2)},
        {"a": torch.arange(4.0).flip(0)},
        {"c": torch.zeros(())},
    ],
)
def test_type_shape_bytes_and_names_count(changed):
    assert tensors_digest(TENSORS | changed) != tensors_digest(TENSORS)


def test_neither_order_nor_memory_layout_counts():
    other = {"b": torch.ones(3, 2).T, "a": TENSORS["a"].clone()}
    assert tensors_digest(other) == tensors_digest(TENSORS)
    assert tensors_digest({"a": torch.zeros(3, dtype=torch.bfloat16)})


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A finished run of eight steps that keeps a checkpoint of every second one."""
    config = nano_config(tmp_path_factory.mktemp("straight"), save=KEEP_ALL)
    run_to_end(config)
    return config


def test_each_checkpoint_names_the_one_before(straight):
    previous = ""
    for step, line in sorted(chain_of(straight.out).items()):
        record = read_digest(straight.out / "checkpoints" / f"step_{step:06d}")
        assert record["digest"] == line["digest"] == chain_digest(record) == chain_digest(line)
        assert (line["previous"], record["lines_until"]) == (previous, step)
        previous = line["digest"]


def test_the_digest_is_that_of_the_tensors_on_disk(straight):
    for checkpoint in (straight.out / "checkpoints").glob("step_??????"):
        assert tensors_digest(saved_tensors(checkpoint)) == read_digest(checkpoint)["tensors"]


def test_a_killed_run_has_the_digests_of_an_undisturbed_one(straight, tmp_path):
    shutil.copytree(straight.out.parent, tmp_path, symlinks=True, dirs_exist_ok=True)
    config = replace(straight, data=(tmp_path / "data",), out=tmp_path / "run")
    forget_after(config.out, 4)
    run_to_end(config)
    for step, line in chain_of(straight.out).items():
        other = chain_of(config.out)[step]
        assert [other[key] for key in ("tensors", "lines")] == [line["tensors"], line["lines"]]


def test_a_run_of_an_older_version_begins_its_chain_where_it_continues(straight, tmp_path):
    shutil.copytree(straight.out.parent, tmp_path, symlinks=True, dirs_exist_ok=True)
    config = replace(straight, data=(tmp_path / "data",), out=tmp_path / "run")
    forget_after(config.out, 4)
    for path in [config.out / "digests.jsonl", *config.out.rglob("digest.json")]:
        path.unlink()
    for manifest in config.out.rglob("MANIFEST.json"):
        content = read_json(manifest)
        del content["files"]["digest.json"]
        manifest.write_text(json.dumps(content))
    run_to_end(config)
    assert {line["began"]["step"] for line in chain_of(config.out).values()} == {4}
