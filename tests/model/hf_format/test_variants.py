"""GPT-2 as others publish it: padded, extended, without biases, damaged or hostile."""

import json
import os
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from data_prep.tokenizer import load_tokenizer
from model.checkpoint import load_model
from model.config import GPTConfig
from model.hf_format.convert import export_model
from storage.atomic import read_json, write_json
from storage.checkpoint_folder import write_manifest
from tests.model.hf_format.models import (
    LLAMA,
    MODERN,
    altered,
    assert_same_logits,
    imported,
    our_checkpoint,
    published,
)
from tests.model.hf_format.test_config import LLAMA_CONFIG


def resized(folder, out, *tokens, **how):
    """The model after transformers gave its tokenizer `tokens` and its embedding more rows."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    model.resize_token_embeddings(len(tokenizer), **how)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model.eval()


@pytest.mark.parametrize("shape", [{}, {"tied": False}, LLAMA, MODERN])
@pytest.mark.parametrize(
    ("tokens", "multiple"), [((), 64), ((), 1000), (("<|pad|>",), None), (("<a>", "<b>"), 128)]
)
def test_rows_beyond_the_tokenizer_and_later_tokens_are_left_out(
    tmp_path, caplog, shape, tokens, multiple
):
    caplog.set_level("INFO")
    ours = our_checkpoint(tmp_path / "ours", **shape)
    export_model(tmp_path / "ours", tmp_path / "out")
    resized(tmp_path / "out", tmp_path / "grown", *tokens, pad_to_multiple_of=multiple)
    again = imported(tmp_path / "grown", tmp_path / "again")
    assert again.config == ours.config
    real = ours.config.vocab_size
    for name, value in ours.state_dict().items():
        rows = real if name in ("wte.weight", "lm_head.weight") else len(value)
        assert torch.equal(again.state_dict()[name][:rows], value[:rows])
    ids = [load_tokenizer(tmp_path / f / "tokenizer").ranks_sha256 for f in ("ours", "again")]
    assert ids[0] == ids[1]
    assert f"rows {real} to" in caplog.text
    assert not tokens or f"{len(tokens)} tokens after <|endoftext|> are left out" in caplog.text


@pytest.mark.parametrize(("rows", "message"), [(50304, None), (50303, "holds no tokenizer")])
def test_gpt2_without_a_tokenizer_may_be_padded_to_a_multiple_of_128(tmp_path, rows, message):
    theirs = published(tmp_path / "theirs", vocab_size=rows)
    if message:
        with pytest.raises(ValueError, match=message):
            imported(tmp_path / "theirs", tmp_path / "ours")
        return
    ours = imported(tmp_path / "theirs", tmp_path / "ours")
    assert ours.config.vocab_size == 50257
    ids = torch.randint(50257, (1, 24))
    with torch.no_grad():
        found, wanted = ours(ids)[..., :50257], theirs(ids).logits[..., :50257]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("noted", [True, False])
def test_a_network_without_biases_comes_back_as_itself(tmp_path, noted):
    ours = our_checkpoint(tmp_path / "ours", bias=False)
    export_model(tmp_path / "ours", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    theirs.save_pretrained(tmp_path / "out")
    if not noted:  # as older exports
        config = read_json(tmp_path / "out" / "config.json")
        del config["ratchet_bias"]
        write_json(tmp_path / "out" / "config.json", config)
    again = imported(tmp_path / "out", tmp_path / "again")
    assert again.config == ours.config
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in ours.parameters())
    assert_same_logits(again, theirs)


def test_biases_that_were_learnt_after_an_export_are_imported(tmp_path, caplog):
    caplog.set_level("INFO")
    our_checkpoint(tmp_path / "ours", bias=False)
    export_model(tmp_path / "ours", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        theirs.get_parameter("transformer.h.1.mlp.c_fc.bias").add_(1)
    theirs.save_pretrained(tmp_path / "out")
    again = imported(tmp_path / "out", tmp_path / "again")
    assert again.config.bias
    assert_same_logits(again, theirs)
    assert "it has some now" in caplog.text


def test_a_model_that_was_never_trained_keeps_its_zero_biases(tmp_path):
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=16, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "theirs")
    assert imported(tmp_path / "theirs", tmp_path / "ours").config.bias


def indexed(sound, folder, weight_map):
    """The model, whose weights are only found through this index."""
    altered(sound, folder)
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    write_json(folder / "model.safetensors.index.json", weight_map)
    return folder


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"x": "../outside.safetensors"}}, r"'\.\./outside.*outside of it"),
        ({"weight_map": {"x": "/etc/passwd"}}, "'/etc/passwd', which is outside of it"),
        ({"weight_map": {"x": "a/../../outside.safetensors"}}, "outside of it"),
        ({"weight_map": {"x": "none.safetensors"}}, r"holds no none\.safetensors"),
        ({"weight_map": {"x": "config.json"}}, r"config\.json cannot be read"),
        ({"weight_map": {"x": 3}}, "has no weight_map"),
        ({"weight_map": ["x"]}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({}, r"index\.json has no weight_map"),
        ([], "has no weight_map"),
        (5, "has no weight_map"),
    ],
)
def test_an_index_that_leads_out_or_nowhere_is_refused(sound, tmp_path, index, message):
    with pytest.raises(ValueError, match=message):
        imported(indexed(sound, tmp_path / "theirs", index), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "vocab.json", "tokenizer.json"]
)
def test_a_link_out_of_the_folder_is_refused(sound, tmp_path, name):
    folder = altered(sound, tmp_path / "theirs")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(sound / "config.json")
    with pytest.raises(ValueError, match="is a link to .*outside of its folder"):
        imported(folder, tmp_path / "ours")


def test_the_links_of_the_hubs_cache_are_followed(sound, tmp_path):
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "abc"
    shutil.copytree(sound, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert imported(snapshot, tmp_path / "ours").config.n_layer == 2


def test_a_tensor_in_two_files_is_refused(sound, tmp_path):
    folder = altered(sound, tmp_path / "theirs")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(ValueError, match=r"b\.safetensors holds transformer.* like another file"):
        imported(folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.fill_(float("nan")), r"768 of 768 weights in transformer\.wpe\.weight are"),
        (lambda w: w.index_fill_(0, torch.tensor(3), float("inf")), "32 of 768 weights"),
        (lambda w: w.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn, which float32 cannot"),
        (lambda w: w.to(torch.int8), "is torch.int8"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(sound, tmp_path, change, message):
    path = altered(sound, tmp_path / "theirs") / "model.safetensors"
    weights = load_file(path)
    weights["transformer.wpe.weight"] = change(weights["transformer.wpe.weight"])
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        imported(path.parent, tmp_path / "ours")


ABSURD = [0, -1, 1.5, 12.0, True, "12", [12], {"a": 1}, 10**9, 10**30, None, float("nan")]


@pytest.mark.parametrize("value", ABSURD, ids=str)
@pytest.mark.parametrize("field", ["n_layer", "n_head", "n_embd", "n_positions", "vocab_size"])
def test_an_absurd_size_is_one_sentence_that_names_it(sound, tmp_path, field, value):
    folder = altered(sound, tmp_path / "theirs", **{field: value})
    with pytest.raises(ValueError, match=rf"config\.json.*({field}|n_head|describes)") as found:
        imported(folder, tmp_path / "ours")
    assert len(str(found.value)) < 400


LLAMA_FIELDS = {*LLAMA_CONFIG} - {"rms_norm_eps"} | {
    "attention_bias", "tie_word_embeddings", "rope_parameters", "num_key_value_heads", "head_dim",
    "rope_theta", "hidden_act", "mlp_bias",
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(LLAMA_FIELDS))
def test_no_value_of_a_llama_setting_ends_in_a_traceback(tmp_path, field):
    for value in [*ABSURD, "x" * 10_000, [[]] * 5000]:
        write_json(tmp_path / "config.json", LLAMA_CONFIG | {field: value})
        with pytest.raises(ValueError, match=".") as found:
            imported(tmp_path, tmp_path / "ours")
        assert len(str(found.value)) < 600


def test_an_adapter_is_refused_with_the_way_to_merge_it(tmp_path):
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(ValueError, match="holds an adapter .*merge_and_unload"):
        imported(tmp_path, tmp_path / "ours")


def test_the_card_says_what_transformers_counts_and_lacks(tmp_path):
    our_checkpoint(tmp_path / "ours", bias=False)
    export_model(tmp_path / "ours", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert f"transformers counts {theirs.num_parameters():,} parameters" in card
    assert "`tokenizer.pad_token = tokenizer.eos_token`" in card
    assert "`<|endoftext|>` written in a text is one id here" in card


@pytest.mark.parametrize("content", ["[]", "5", '{"step": []}', '{"windows": "x", "step": 1}'])
def test_a_file_beside_the_weights_never_prevents_an_export(tmp_path, content):
    folder = tmp_path / "run" / "checkpoints" / "step_000001"
    our_checkpoint(folder)
    (folder / "state.json").write_text(content)
    (folder / "results.json").write_text(json.dumps({"step": 1, "metrics": {"val/loss": "low"}}))
    write_manifest(folder)
    export_model(folder, tmp_path / "out")
    assert "| layers | 2 |" in (tmp_path / "out" / "README.md").read_text()


def test_a_shape_file_with_absurd_values_is_one_sentence(tmp_path):
    our_checkpoint(tmp_path / "ours")
    path = tmp_path / "ours" / "model.json"
    for value in [*ABSURD, "gelu"]:
        write_json(path, {"format": 1, "config": {"n_layer": value}})
        with pytest.raises(ValueError, match="n_layer="):
            load_model(tmp_path / "ours")
    for config in ([], 5, None, {"depth": 3}, {"bias": "yes"}, {"norm": 3}):
        write_json(path, {"format": 1, "config": config})
        with pytest.raises(ValueError, match=r"model\.json"):
            load_model(tmp_path / "ours")
    assert GPTConfig().n_layer == 12
