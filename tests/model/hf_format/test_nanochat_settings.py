"""Modern shapes as NanoChatForCausalLM: each setting of config.json, out and in."""

import shutil

import pytest
import torch
import transformers

from model.config import GPTConfig
from model.gpt import GPT
from model.hf_format.config import hf_config, ratchet_config
from model.hf_format.convert import export_model
from model.shapes import SHAPES
from storage.atomic import read_json, write_json
from tests.model.hf_format.models import (
    MODERN,
    altered,
    assert_same_logits,
    imported,
    our_checkpoint,
    random_nanochat,
    small_tokenizer,
)
from tests.model.hf_format.test_variants import ABSURD

# What does not change the network's function: training in transformers, and its generation.
WITHOUT_EFFECT = {
    "attention_dropout", "initializer_range", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id",
}  # fmt: skip
FIELDS = [
    name
    for name in transformers.NanoChatConfig.__annotations__
    if name not in {"model_type", "base_model_tp_plan", "keys_to_ignore_at_inference"}
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nanochat") / "theirs"
    random_nanochat(folder)
    return folder


def test_the_exported_configuration_leaves_nothing_to_the_classs_defaults(tmp_path):
    our_checkpoint(tmp_path / "ours", **MODERN)
    export_model(tmp_path / "ours", tmp_path / "out")
    written = read_json(tmp_path / "out" / "config.json")
    assert set(FIELDS) <= written.keys()
    assert "ratchet_initial_weights" not in written
    end = small_tokenizer().n_vocab - 1
    assert written | {
        "vocab_size": end + 1, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 48,
        "rms_norm_eps": 1e-5, "final_logit_softcapping": 15.0, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": None, "hidden_act": "relu2",
    } == written  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.get_input_embeddings().padding_idx is None


@pytest.mark.parametrize("preset", SHAPES)
def test_each_preset_comes_back_from_its_own_configuration(tmp_path, preset):
    assert ratchet_config(tmp_path, hf_config(SHAPES[preset], 50256)) == SHAPES[preset]


def attempted(path, found) -> tuple[GPTConfig | None, str]:
    """The shape, or the sentence that refuses the configuration."""
    try:
        return ratchet_config(path, found), ""
    except ValueError as error:
        return None, str(error)


OTHER_VALUES = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": True, "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    "tie_word_embeddings": True, "final_logit_softcapping": 30.0, "vocab_size": 900,
    "hidden_size": 128, "intermediate_size": 97, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 47,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(FIELDS) - WITHOUT_EFFECT))
def test_every_setting_that_has_an_effect_is_taken_over_or_refused_by_name(sound, name):
    path = sound / "config.json"
    found = read_json(path)
    before, other = ratchet_config(path, found), found | {name: OTHER_VALUES[name]}
    if name == "num_attention_heads":
        other["num_key_value_heads"] = None
    shape, sentence = attempted(path, other)
    named = "rope_theta" if name == "rope_parameters" else name
    assert shape != before if shape else f"{named}=" in sentence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": 1e-6}, r"rms_norm_eps=1e-06 \(must be 1e-05\)"),
        ({"hidden_act": "gelu"}, r"hidden_act=gelu \(must be relu2\)"),
        ({"attention_bias": True}, r"attention_bias=True \(must be False\)"),
        ({"num_key_value_heads": 1}, r"num_key_value_heads=1 \(must be 2 or None\)"),
        ({"head_dim": 16}, r"head_dim=16 \(must be 32 or None\)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        ({"rope_parameters": {"rope_theta": 1e5}}, r"rope_theta=100000\.0 \(must be 10000\.0\)"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling=linear"),
        ({"rope_parameters": {"type": "yarn"}}, "rope_scaling=yarn"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_scaling={'full_a"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": None, "rope_theta": 5e5}, r"rope_theta=500000\.0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling=dynamic"),
        ({"rope_scaling": "long"}, "rope_scaling=long"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"is_causal": False}, r"is_causal=False \(must be True\)"),
        ({"sliding_window": 8}, r"sliding_window=8 \(must be None\)"),
        ({"final_logit_softcapping": 0}, r"json: final_logit_softcapping=0 is not from"),
        ({"final_logit_softcapping": -15.0}, r"final_logit_softcapping=-15\.0 is not from"),
        ({"final_logit_softcapping": True}, "final_logit_softcapping=True is not a number"),
        ({"final_logit_softcapping": "15"}, "final_logit_softcapping='15' is not a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 is not known"),
        ({"intermediate_size": 0}, "intermediate_size=0 is not a size"),
        (
            {"num_attention_heads": 3},
            "hidden_size=64 is not a .* num_attention_heads=3; try",
        ),
        ({"ratchet_initial_weights": "x"}, "ratchet_initial_weights='x' is not known"),
    ],
)
def test_a_value_that_the_network_does_not_have_is_refused_by_name(
    sound, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        imported(altered(sound, tmp_path / "theirs", **changes), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_value_that_is_not_written_is_the_classs_default(sound):
    path, found = sound / "config.json", read_json(sound / "config.json")
    without = {key: value for key, value in found.items() if key != "rms_norm_eps"}
    with pytest.raises(ValueError, match=r"rms_norm_eps=1e-06 \(must be 1e-05\)"):
        ratchet_config(path, without)
    free = ("hidden_act", "attention_bias", "num_key_value_heads", "rope_parameters",
            "tie_word_embeddings", "final_logit_softcapping")  # fmt: skip
    without = {key: value for key, value in found.items() if key not in free}
    assert ratchet_config(path, without) == ratchet_config(path, found)
    for size in ("intermediate_size", "hidden_size", "vocab_size", "max_position_embeddings"):
        without = {key: value for key, value in found.items() if key != size}
        with pytest.raises(ValueError, match=f"has no field '{size}'; give the complete"):
            ratchet_config(path, without)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 10000.0, "rope_scaling": None},
        {"rope_theta": 10000, "partial_rotary_factor": 1.0},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": {"type": "default"}},
        {},
    ],
)
def test_the_rotary_base_is_known_by_its_older_names_too(sound, tmp_path, rope):
    found = read_json(sound / "config.json")
    del found["rope_parameters"]
    folder = tmp_path / "theirs"
    shutil.copytree(sound, folder)
    write_json(folder / "config.json", found | rope)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert_same_logits(imported(folder, tmp_path / "ours"), theirs)


@pytest.mark.parametrize("field", sorted({*FIELDS, "rope_theta", "rope_scaling", "head_dim"}))
def test_no_value_of_any_setting_ends_in_a_traceback(sound, field):
    path, found = sound / "config.json", read_json(sound / "config.json")
    for value in [*ABSURD, "x" * 10_000, [[]] * 5000, float("inf"), -0.0, 1e-300, 10**400]:
        shape, sentence = attempted(path, found | {field: value})
        assert len(sentence) < 600
        if shape is not None and field == "final_logit_softcapping":
            states = torch.tensor([[-300.0, 0, 300, 1] * 16])
            assert GPT(shape).head(states).isfinite().all()
