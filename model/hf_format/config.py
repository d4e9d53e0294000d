"""GPTConfig as a config.json of transformers, and back.

GPT-2's shapes become `GPT2LMHeadModel`, Llama-like shapes `LlamaForCausalLM`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.blocks import RMS_EPSILON, ROPE_BASE
from model.config import GPTConfig

_LAYER_NORM_EPSILON = 1e-5  # torch's default, which our network uses, and GPT-2's
CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
# The fields that a GPTConfig must have to fit each class.
_REQUIRED_FIELDS = {
    "gpt2": {"norm": "layernorm", "mlp": "gelu", "position": "learned"},
    "llama": {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope"},
}
# The settings that a published configuration must have, because our network knows no others. The
# first value is also the class's default, unless _HF_DEFAULTS has another one.
_REQUIRED_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (_LAYER_NORM_EPSILON,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    },
    "llama": {
        "hidden_act": ("silu",),
        "rms_norm_eps": (RMS_EPSILON,),
        "rope_scaling": (None,),
        "rope_theta": (ROPE_BASE,),
        "quantization_config": (None,),
    },
}
_HF_DEFAULTS = {"rms_norm_eps": 1e-6, "mlp_bias": False}


def family_of(config: GPTConfig) -> str:
    """The family, gpt2 or llama, whose class can represent this shape.

    Raises: ValueError naming the fields that prevent it.
    """
    reasons = []
    for family, fields in _REQUIRED_FIELDS.items():
        own = {name: getattr(config, name) for name in fields}
        wrong = [
            f"{name}={own[name]} (needs {fields[name]})"
            for name in fields
            if own[name] != fields[name]
        ]
        if not wrong:
            return family
        reasons.append(f"{CLASSES[family]} cannot hold {', '.join(wrong)}")
    raise ValueError(
        f"this shape cannot be exported: {'; '.join(reasons)}; train one of these two shapes"
    )


def hf_config(config: GPTConfig, end_of_text: int) -> dict[str, Any]:
    """The content of config.json for a model of this shape."""
    family = family_of(config)
    common = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
    }
    if family == "gpt2":
        return common | {
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "n_inner": config.mlp_width,
            "n_positions": config.context_length,
            "n_ctx": config.context_length,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": _LAYER_NORM_EPSILON,
            # Our network has no dropout; the defaults of GPT2Config are 0.1.
            **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        }
    return common | {
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "head_dim": config.head_width,
        "hidden_size": config.n_embd,
        "intermediate_size": config.hidden_width,
        "max_position_embeddings": config.context_length,
        "hidden_act": "silu",
        "rms_norm_eps": RMS_EPSILON,
        "rope_theta": ROPE_BASE,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


def ratchet_config(path: Path, found: Mapping[str, Any]) -> GPTConfig:
    """The shape that a published config.json describes.

    Raises: ValueError naming every setting that our network does not have.
    """
    family = found.get("model_type")
    if family not in _REQUIRED_SETTINGS:
        raise ValueError(
            f"{path} describes a model_type={family}, but only "
            f"{' and '.join(_REQUIRED_SETTINGS)} can be imported; give another model"
        )
    settings = {**_HF_DEFAULTS, **found, **_rotary(found)}
    try:
        wrong = [
            f"{name}={settings[name]} (must be {' or '.join(map(str, wanted))})"
            for name, wanted in _required_settings(family, found).items()
            if settings.get(name, wanted[0]) not in wanted
        ]
        config = _gpt2_shape(found) if family == "gpt2" else _llama_shape(found)
    except KeyError as error:
        raise ValueError(f"{path} has no field {error}; give the complete config.json") from error
    except TypeError as error:
        raise ValueError(f"{path} has a size that is no number ({error}); copy it again") from error
    if wrong:
        raise ValueError(
            f"{path} describes a network that Ratchet does not have: {', '.join(wrong)}; give a "
            f"plain {family} model"
        )
    return config


def _required_settings(family: str, found: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    if family == "gpt2":
        return _REQUIRED_SETTINGS[family]
    # No grouped-query attention, no other head width, and biases everywhere or nowhere.
    heads = found["num_attention_heads"]
    return _REQUIRED_SETTINGS[family] | {
        "num_key_value_heads": (heads, None),
        "head_dim": (found["hidden_size"] // heads, None),
        "mlp_bias": (found.get("attention_bias", False),),
    }


def _rotary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings by their names before transformers 5, which moved them to rope_parameters."""
    rope = found.get("rope_parameters") or {}
    plain = rope.get("rope_type", "default") == "default"
    scaling = {} if plain else {"rope_scaling": rope["rope_type"]}
    return scaling | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})


def _gpt2_shape(found: Mapping[str, Any]) -> GPTConfig:
    width = found["n_embd"]
    return GPTConfig(
        n_layer=found["n_layer"],
        n_head=found["n_head"],
        n_embd=width,
        context_length=found["n_positions"],
        vocab_size=found["vocab_size"],
        mlp_width=_mlp_width(found.get("n_inner"), width),
        tied=found.get("tie_word_embeddings", True),
    )


def _llama_shape(found: Mapping[str, Any]) -> GPTConfig:
    width = found["hidden_size"]
    return GPTConfig(
        n_layer=found["num_hidden_layers"],
        n_head=found["num_attention_heads"],
        n_embd=width,
        context_length=found["max_position_embeddings"],
        vocab_size=found["vocab_size"],
        mlp_width=_mlp_width(found["intermediate_size"], width),
        norm="rmsnorm",
        mlp="swiglu",
        position="rope",
        bias=found.get("attention_bias", False),
        tied=found.get("tie_word_embeddings", False),
    )


def _mlp_width(found: int | None, width: int) -> int | None:
    """None for four times the width, so that equal shapes compare equal."""
    return None if found == 4 * width else found
