"""GPTConfig as a config.json of transformers, and back.

GPT-2's shapes become `GPT2LMHeadModel`, Llama-like ones `LlamaForCausalLM`, modern ones
`NanoChatForCausalLM`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.blocks import ROPE_BASE
from model.config import GPTConfig
from model.hf_format.dropout import dropout_settings, share_dropped
from model.plain_rms_norm import RMS_EPSILON

_LAYER_NORM_EPSILON = 1e-5  # torch's default, which our network uses, and GPT-2's
CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "nanochat": "NanoChatForCausalLM",
}
_PLAIN = {
    "norm_weight": True,
    "embedding_norm": False,
    "qk_norm": False,
    "logit_softcap": None,
    "shortcuts": False,
}
# The fields that a GPTConfig must have to fit each class.
_REQUIRED_FIELDS: dict[str, dict[str, Any]] = {
    "gpt2": {"norm": "layernorm", "mlp": "gelu", "position": "learned", **_PLAIN},
    "llama": {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", **_PLAIN},
    "nanochat": {
        "norm": "rmsnorm",
        "norm_weight": False,
        "embedding_norm": True,
        "qk_norm": True,
        "mlp": "relu2",
        "position": "rope",
        "bias": False,
        "shortcuts": False,
    },
}
# The settings that a published configuration must have, because our network knows no others. The
# first value is also the class's default, unless _HF_DEFAULTS has another one.
_LLAMA_LIKE = {
    "rms_norm_eps": (RMS_EPSILON,),
    "rope_scaling": (None,),
    "rope_theta": (ROPE_BASE,),
    "partial_rotary_factor": (1.0, None),
    "is_causal": (True,),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
_REQUIRED_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (_LAYER_NORM_EPSILON,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    },
    "llama": {"hidden_act": ("silu",), **_LLAMA_LIKE},
    "nanochat": {"hidden_act": ("relu2",), "attention_bias": (False,), **_LLAMA_LIKE},
}
_NANOCHAT_SOFTCAP = 15.0  # the class's default
_HF_DEFAULTS = {"rms_norm_eps": 1e-6, "mlp_bias": False}
# Keys of our own: the class for GPT-2 always has biases, zeros where our network has none; and a
# scheme of initial weights that shapes of the family seldom have.
_BIAS_NOTE = "ratchet_bias"
_INITIAL_NOTE = "ratchet_initial_weights"
_INITIAL_WEIGHTS = {"gpt2": "gpt2", "llama": "gpt2", "nanochat": "zero_outputs"}


def family_of(config: GPTConfig) -> str:
    """The family, a key of `CLASSES`, whose class can represent this shape.

    Raises: ValueError naming the fields that differ from the nearest family's.
    """
    wrong = {
        family: [name for name, needed in fields.items() if getattr(config, name) != needed]
        for family, fields in _REQUIRED_FIELDS.items()
    }
    family = min(wrong, key=lambda family: len(wrong[family]))
    if not wrong[family]:
        return family
    needed = [
        f"{name}={getattr(config, name)} (needs {_REQUIRED_FIELDS[family][name]})"
        for name in wrong[family]
    ]
    raise ValueError(
        f"this shape cannot be exported: {CLASSES[family]}, the nearest class of transformers, "
        f"cannot hold {', '.join(needed)}; use the checkpoint itself (eval/main.py, "
        "eval/generate.py), or train a shape without that"
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
    if config.initial_weights != _INITIAL_WEIGHTS[family]:
        common[_INITIAL_NOTE] = config.initial_weights
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
            **dropout_settings(family, config.dropout),
        }
    common |= {
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "hidden_size": config.n_embd,
        "intermediate_size": config.hidden_width,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": RMS_EPSILON,
        "attention_bias": config.bias,
    }
    common |= dropout_settings(family, config.dropout)
    if family == "nanochat":
        return common | {
            "hidden_act": "relu2",
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
            "final_logit_softcapping": config.logit_softcap and float(config.logit_softcap),
            # The class's default is 1: training in transformers would never update that row.
            "pad_token_id": None,
        }
    return common | {
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rope_theta": ROPE_BASE,
        "mlp_bias": config.bias,
    }


def ratchet_config(path: Path, found: Mapping[str, Any]) -> GPTConfig:
    """The shape that a published config.json describes.

    Raises: ValueError naming every setting that our network does not have, or the first that is no
    size or no switch.
    """
    shapes = {"gpt2": _gpt2_shape, "llama": _llama_shape, "nanochat": _nanochat_shape}
    family = found.get("model_type")
    if not isinstance(family, str) or family not in _REQUIRED_SETTINGS:
        raise ValueError(
            f"{path} describes a model_type={family!s:.80}, which must be one of "
            f"{', '.join(CLASSES)}; give another model"
        )
    try:
        config = shapes[family](found)
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
            f"{family} model with these values"
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
    required: dict[str, tuple[Any, ...]] = {
        # No grouped-query attention, no other head width.
        "num_key_value_heads": (config.n_head, None),
        "head_dim": (config.head_width, None),
    }
    if family == "llama":  # biases everywhere or nowhere
        required["mlp_bias"] = (found.get("attention_bias", False),)
    return _REQUIRED_SETTINGS[family] | required


def _rotary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings by their names before transformers 5, which moved them to rope_parameters."""
    rope = found.get("rope_scaling") or found.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        return {"rope_scaling": rope}
    kind = rope.get("rope_type", rope.get("type", "default"))
    by_layer = any(isinstance(value, Mapping) for value in rope.values())
    moved = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    return moved | {"rope_scaling": rope if by_layer else None if kind == "default" else kind}


def _gpt2_shape(found: Mapping[str, Any]) -> GPTConfig:
    return _shape(
        {"n_inner": None, **found},
        n_layer="n_layer",
        n_head="n_head",
        n_embd="n_embd",
        context_length="n_positions",
        mlp_width="n_inner",
        tied=found.get("tie_word_embeddings", True),
        initial_weights=_initial_weights("gpt2", found),
        dropout=share_dropped("gpt2", found),
    )


def _llama_shape(found: Mapping[str, Any]) -> GPTConfig:
    bias = found.get("attention_bias", False)
    return _rotary_shape("llama", found, mlp="swiglu", bias=bias)


def _nanochat_shape(found: Mapping[str, Any]) -> GPTConfig:
    fields = {**_REQUIRED_FIELDS["nanochat"]}
    fields["logit_softcap"] = found.get("final_logit_softcapping", _NANOCHAT_SOFTCAP)
    return _rotary_shape("nanochat", found, **fields)


def _rotary_shape(family: str, found: Mapping[str, Any], **fields: Any) -> GPTConfig:
    return _shape(
        found,
        n_layer="num_hidden_layers",
        n_head="num_attention_heads",
        n_embd="hidden_size",
        context_length="max_position_embeddings",
        mlp_width="intermediate_size",
        tied=found.get("tie_word_embeddings", False),
        initial_weights=_initial_weights(family, found),
        dropout=share_dropped(family, found),
        **{"norm": "rmsnorm", "position": "rope", **fields},
    )


def _initial_weights(family: str, found: Mapping[str, Any]) -> Any:
    return found.get(_INITIAL_NOTE, _INITIAL_WEIGHTS[family])


_SIZES = ("mlp_width", "n_layer", "n_head", "n_embd", "context_length")
_OTHER_NAMES = {
    "bias": "attention_bias",
    "tied": "tie_word_embeddings",
    "logit_softcap": "final_logit_softcapping",
    "initial_weights": _INITIAL_NOTE,
}


def _shape(found: Mapping[str, Any], **fields: Any) -> GPTConfig:
    """The shape with these fields; of each size the name in config.json is given.

    Raises: ValueError, with the names of config.json, if a value is no size or no switch.
    """
    names = {field: fields[field] for field in _SIZES} | {"vocab_size": "vocab_size"}
    sizes = {field: found[name] for field, name in names.items()}
    # None for four times the width, so that equal shapes compare equal.
    if sizes["mlp_width"] == _four_times(sizes["n_embd"]):
        sizes["mlp_width"] = None
    try:
        return GPTConfig(**fields | sizes)
    except ValueError as error:
        text = str(error)
        for field, name in (names | _OTHER_NAMES).items():
            text = re.sub(rf"\b{field}\b", name, text)
        raise ValueError(text) from error


def _four_times(width: Any) -> Any:
    return 4 * width if isinstance(width, int) else None
