"""GPTConfig as a config.json of transformers, and back.

GPT-2's shapes become `GPT2LMHeadModel`, Llama-like shapes `LlamaForCausalLM`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.blocks import ROPE_BASE
from model.config import GPTConfig
from model.plain_rms_norm import RMS_EPSILON

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
# A key of our own: the class for GPT-2 always has biases, zeros where our network has none.
_BIAS_NOTE = "ratchet_bias"


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
            _BIAS_NOTE: config.bias,
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

    Raises: ValueError naming every setting that our network does not have, or the first that is no
    size or no switch.
    """
    family = found.get("model_type")
    if not isinstance(family, str) or family not in _REQUIRED_SETTINGS:
        raise ValueError(
            f"{path} describes a model_type={family!s:.80}, but only "
            f"{' and '.join(_REQUIRED_SETTINGS)} can be imported; give another model"
        )
    try:
        config = _gpt2_shape(found) if family == "gpt2" else _llama_shape(found)
        settings = {**_HF_DEFAULTS, **found, **_rotary(found)}
        wrong = [
            f"{name}={settings[name]!s:.80} (must be {' or '.join(map(str, wanted))})"
            for name, wanted in _required_settings(family, config, found).items()
            if settings.get(name, wanted[0]) not in wanted
        ]
    except KeyError as error:
        raise ValueError(f"{path} has no field {error}; give the complete config.json") from error
    except ValueError as error:  # of the shape
        raise ValueError(f"{path}: {error}") from error
    if wrong:
        raise ValueError(
            f"{path} describes a network that Ratchet does not have: {', '.join(wrong)}; give a "
            f"plain {family} model"
        )
    return config


def noted_bias(found: Mapping[str, Any]) -> bool | None:
    """Whether the network that was exported had biases; None if a config.json does not say so."""
    noted = found.get(_BIAS_NOTE)
    return noted if isinstance(noted, bool) else None


def _required_settings(
    family: str, config: GPTConfig, found: Mapping[str, Any]
) -> dict[str, tuple[Any, ...]]:
    if family == "gpt2":
        return _REQUIRED_SETTINGS[family]
    # No grouped-query attention, no other head width, and biases everywhere or nowhere.
    return _REQUIRED_SETTINGS[family] | {
        "num_key_value_heads": (config.n_head, None),
        "head_dim": (config.head_width, None),
        "mlp_bias": (found.get("attention_bias", False),),
    }


def _rotary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings by their names before transformers 5, which moved them to rope_parameters."""
    rope = found.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        return {"rope_scaling": rope}
    plain = rope.get("rope_type", "default") == "default"
    scaling = {} if plain else {"rope_scaling": rope["rope_type"]}
    return scaling | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})


def _gpt2_shape(found: Mapping[str, Any]) -> GPTConfig:
    return _shape(
        found,
        n_layer="n_layer",
        n_head="n_head",
        n_embd="n_embd",
        context_length="n_positions",
        vocab_size="vocab_size",
        mlp_width=found.get("n_inner"),
        tied=found.get("tie_word_embeddings", True),
    )


def _llama_shape(found: Mapping[str, Any]) -> GPTConfig:
    return _shape(
        found,
        n_layer="num_hidden_layers",
        n_head="num_attention_heads",
        n_embd="hidden_size",
        context_length="max_position_embeddings",
        vocab_size="vocab_size",
        mlp_width=found["intermediate_size"],
        norm="rmsnorm",
        mlp="swiglu",
        position="rope",
        bias=found.get("attention_bias", False),
        tied=found.get("tie_word_embeddings", False),
    )


_SIZES = ("n_layer", "n_head", "n_embd", "context_length", "vocab_size")


def _shape(found: Mapping[str, Any], **fields: Any) -> GPTConfig:
    """The shape with these fields; of each size the name in config.json is given.

    Raises: ValueError, with the names of config.json, if a value is no size or no switch.
    """
    names = {field: fields[field] for field in _SIZES}
    sizes = {field: found[name] for field, name in names.items()}
    width = fields.pop("mlp_width")
    # None for four times the width, so that equal shapes compare equal.
    width = None if width in (None, _four_times(sizes["n_embd"])) else width
    try:
        return GPTConfig(**fields | sizes, mlp_width=width)
    except ValueError as error:
        field = str(error).partition("=")[0]
        name = names.get(field, field)
        raise ValueError(f"{name}{str(error).removeprefix(field)}") from error


def _four_times(width: Any) -> Any:
    return 4 * width if isinstance(width, int) else None
