"""Published weights under other names, in other types, with padding rows."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.hf_format.models import assert_same_logits, imported, published


def test_openais_own_file_without_prefix_and_with_buffers_is_the_same_model(tmp_path):
    published(tmp_path / "theirs")
    wanted = imported(tmp_path / "theirs", tmp_path / "a").state_dict()
    path = tmp_path / "theirs" / "model.safetensors"
    bare = {name.removeprefix("transformer."): value for name, value in load_file(path).items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 24, 24), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(bare, path)
    found = imported(tmp_path / "theirs", tmp_path / "b").state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_half_precision_weights_are_widened_exactly(tmp_path):
    theirs = published(tmp_path / "theirs")
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    assert_same_logits(imported(tmp_path / "theirs", tmp_path / "ours"), theirs.float())


def test_padding_ids_of_an_import_stay_improbable_where_all_logits_are_negative(tmp_path):
    theirs = published(tmp_path / "theirs")
    with torch.no_grad():  # OpenAI's logits are around -40 for any text: zeros would win
        theirs.transformer.ln_f.bias.add_(10)
        theirs.transformer.wte.weight.sub_(0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = imported(tmp_path / "theirs", tmp_path / "ours")
    with torch.no_grad():
        logits = ours(torch.randint(50257, (1, 24)))
    assert logits[..., :50257].max() < -20
    assert logits.softmax(-1)[..., 50257:].sum(-1).max() < 47 / 50257


def test_a_tied_head_may_be_stored_twice_but_not_as_two(tmp_path):
    published(tmp_path / "theirs")
    wanted = imported(tmp_path / "theirs", tmp_path / "a").state_dict()
    path = tmp_path / "theirs" / "model.safetensors"
    weights = load_file(path)
    embedding = weights["transformer.wte.weight"]
    save_file(weights | {"lm_head.weight": embedding.clone()}, path)
    found = imported(tmp_path / "theirs", tmp_path / "b").state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    for other in (embedding + 1, embedding[:-1].clone()):
        save_file(weights | {"lm_head.weight": other}, path)
        with pytest.raises(ValueError, match="lm_head.weight differs from transformer.wte.weight"):
            imported(tmp_path / "theirs", tmp_path / "c")
