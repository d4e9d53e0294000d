"""Weights in several files, pickles, damaged files, and the Hub."""

import json
import shutil

import pytest

from model.checkpoint import load_model
from tests.fake_hub import FakeHub
from tests.launching import python
from tests.model.hf_format.models import altered, assert_same_logits, imported, published


def test_weights_in_several_files_are_read_by_their_index(tmp_path):
    theirs = published(tmp_path / "theirs")
    shutil.rmtree(tmp_path / "theirs")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    assert_same_logits(imported(tmp_path / "theirs", tmp_path / "ours"), theirs)


def test_pickled_weights_are_refused_unread(sound, tmp_path):
    folder = altered(sound, tmp_path / "theirs")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors.*can run code.*save_pretrained"):
        imported(folder, tmp_path / "ours")


def test_a_cut_weight_file_is_refused(sound, tmp_path):
    path = altered(sound, tmp_path / "theirs") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cannot be read"):
        imported(path.parent, tmp_path / "ours")


def fetched(hub_url, home, *words):
    """Run the import in a process of its own: the Hub's library reads its address at import."""
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return python("model/huggingface.py", "import", *map(str, words), **settings)


@pytest.mark.slow
def test_a_model_comes_from_the_hub_again_if_damaged_and_later_from_the_cache(tmp_path, gpt2_files):
    folder = tmp_path / "hub" / "_models" / "openai-community" / "gpt2"
    theirs = published(folder)
    shutil.copy(gpt2_files / "vocab.json", folder)
    shutil.copy(gpt2_files / "merges.txt", folder)
    with FakeHub(tmp_path / "hub", faults=["corrupt:count=1,path=cdn"]) as hub:
        done = fetched(hub.url, tmp_path / "home", "gpt2", "--out", tmp_path / "ours")
        assert done.returncode == 0, done.stderr
        assert hub.stats()["faults"] == {"corrupt": 1}
        url = hub.url
    assert_same_logits(load_model(tmp_path / "ours"), theirs)
    commit = json.loads((tmp_path / "ours" / "origin.json").read_text())["commit"]
    words = ("gpt2", "--revision", commit, "--out", tmp_path / "again")
    assert fetched(url, tmp_path / "home", *words).returncode == 0
    gone = fetched(url, tmp_path / "home", "gpt2-xl", "--out", tmp_path / "xl")
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
    refusal = "gpt2-xl at revision=main is no local folder and cannot be downloaded from the Hub"
    assert refusal in gone.stderr
