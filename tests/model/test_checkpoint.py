"""A model on disk comes back bit for bit, or is refused by name."""

import errno
import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.checkpoint import load_config, load_model, load_weights, save_model, write_tensors
from model.config import GPTConfig
from model.gpt import GPT

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16, context_length=8, vocab_size=100)


@pytest.fixture
def saved(tmp_path):
    model = GPT(CONFIG)
    model.initialise(3)
    save_model(tmp_path, model)
    return tmp_path, model


def test_a_saved_model_comes_back_bit_for_bit(saved):
    folder, model = saved
    loaded = load_model(folder)
    assert loaded.config == CONFIG
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_the_umask_decides_who_may_read_the_weights(saved):
    modes = {path.name: path.stat().st_mode for path in saved[0].iterdir()}
    assert modes["model.safetensors"] == modes["model.json"]


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model\.json; give a checkpoint folder"):
        load_config(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"format": 2}', "[]", "{oops"])
def test_an_unknown_format_is_refused(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match=r"format|not readable JSON"):
        load_config(tmp_path)


def test_a_shape_with_unknown_fields_is_refused(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"format": 1, "config": {"depth": 3}}))
    with pytest.raises(ValueError, match="does not describe a GPT"):
        load_config(tmp_path)


def test_weights_of_another_shape_are_refused_by_name(saved):
    other = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=8, vocab_size=100))
    with pytest.raises(ValueError, match=r"tensor h\.0\.attn\.c_attn\.bias is \(48,\) but"):
        load_weights(saved[0], other)


def test_a_missing_tensor_is_refused_by_name(saved):
    folder, model = saved
    weights = load_file(folder / "model.safetensors")
    del weights["ln_f.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensor ln_f\.weight is missing"):
        load_weights(folder, model)


def test_a_truncated_weight_file_is_refused(saved):
    path = saved[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(*saved)


def test_a_full_disk_is_the_error_that_it_is(tmp_path, monkeypatch):
    def full(*_):  # the library's own words
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr("model.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_tensors(tmp_path / "weights", {"x": torch.zeros(9)})
    assert caught.value.errno == errno.ENOSPC
