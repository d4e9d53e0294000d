"""Models that the network cannot represent are refused by name, in both directions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import GPTConfig
from model.hf_format.config import family_of, hf_config, noted_bias, ratchet_config
from model.hf_format.convert import import_model
from storage.atomic import write_json
from tests.model.hf_format.models import LLAMA, MODERN, altered, imported

SWITCHES = ("norm_weight", "embedding_norm", "qk_norm", "bias", "tied", "shortcuts")
LLAMA_CONFIG = {
    "model_type": "llama", "num_attention_heads": 4, "hidden_size": 32, "num_hidden_layers": 1,
    "max_position_embeddings": 16, "vocab_size": 300, "intermediate_size": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "relu"}, r"activation_function=relu \(must be gelu_new"),
        ({"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon=1e-06 \(must be 1e-05\)"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"activation_function": "silu", "scale_attn_weights": False}, "silu.*weights=False"),
        ({"model_type": "gpt_neox"}, "model_type=gpt_neox, which must be one of gpt2, llama"),
        ({"n_embd": "wide"}, "n_embd='wide' is not a whole number"),
        ({"model_type": "llama"}, "has no field 'intermediate_size'"),
        ({"n_layer": 3}, r"has no tensor transformer\.h\.2"),
        ({"n_layer": 1}, r"holds transformer\.h\.1.*and 11 others"),
        ({"n_positions": 25}, r"wpe\.weight is \(24, 32\), but config.json describes \(25, 32\)"),
        ({"vocab_size": 50258}, "holds no tokenizer"),
    ],
)
def test_settings_that_the_network_lacks_are_refused_by_name(sound, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        imported(altered(sound, tmp_path / "theirs", **changes), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads=2"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06"),
        ({"head_dim": 16}, "head_dim=16"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_scaling=llama3"),
        ({"rope_theta": 500000.0}, r"rope_theta=500000\.0"),
        ({"attention_bias": True}, "mlp_bias=False"),
    ],
)
def test_llama_settings_that_the_network_lacks_are_refused_by_name(tmp_path, changes, message):
    write_json(tmp_path / "config.json", LLAMA_CONFIG | changes)
    with pytest.raises(ValueError, match=message):
        import_model(str(tmp_path), tmp_path / "ours")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"norm": "rmsnorm"},
            r"GPT2LMHeadModel, .* cannot hold norm=rmsnorm \(needs layernorm\); use",
        ),
        (LLAMA | {"mlp": "gelu"}, r"LlamaForCausalLM, .* cannot hold mlp=gelu \(needs swiglu\);"),
        (MODERN | {"shortcuts": True}, r"NanoChat.* cannot hold shortcuts=True \(needs False\);"),
        ({"shortcuts": True}, r"GPT2.* cannot hold shortcuts=True \(needs False\); use"),
        ({"logit_softcap": 15}, r"GPT2.* cannot hold logit_softcap=15 \(needs None\); use"),
        (LLAMA | {"qk_norm": True}, r"Llama.* cannot hold qk_norm=True \(needs False\); use"),
        (LLAMA | {"norm_weight": False}, r"Llama.* cannot hold norm_weight=False \(needs True\)"),
        (MODERN | {"bias": True}, r"NanoChat.* cannot hold bias=True \(needs False\); use"),
        (MODERN | {"mlp": "gelu"}, r"NanoChat.* cannot hold mlp=gelu \(needs relu2\); use"),
        (MODERN | {"norm": "layernorm", "qk_norm": False}, r"norm=layernorm \(.*\), qk_norm=F"),
    ],
)
def test_shapes_that_fit_no_class_are_refused_with_the_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        family_of(GPTConfig(**fields))


CHANGES = {
    "norm": st.sampled_from(["layernorm", "rmsnorm"]),
    "mlp": st.sampled_from(["gelu", "swiglu", "relu2"]),
    "position": st.sampled_from(["learned", "rope"]),
    "logit_softcap": st.sampled_from([None, 0.5, 15]),
    "initial_weights": st.sampled_from(["gpt2", "zero_outputs"]),
    "mlp_width": st.sampled_from([None, 40]),
    **{name: st.booleans() for name in SWITCHES},
}


@given(st.sampled_from([{}, LLAMA, MODERN]), st.fixed_dictionaries({}, optional=CHANGES))
def test_a_shape_comes_back_as_itself_or_is_refused(base, changes):
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=300, **base | changes)
    try:
        family = family_of(config)
    except ValueError:
        with pytest.raises(ValueError, match=r"cannot hold \w+=[\w.]+ \(needs"):
            hf_config(config, 299)
        return
    found = json.loads(json.dumps(hf_config(config, 299)))
    assert found["model_type"] == family
    again = ratchet_config(Path("config.json"), found)
    if family == "gpt2":  # its class always has biases
        again = replace(again, bias=noted_bias(found))
    assert again == config
