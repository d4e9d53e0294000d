"""A network's weights under Hugging Face's names, there and back.

Each of our tensors is one of theirs, or three of theirs on top of each other (Llama's query, key
and value). GPT-2's linear layers are stored transposed there (`Conv1D`).
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import named_weights
from model.config import GPTConfig
from model.gpt import GPT
from model.hf_format.config import CLASSES, family_of

BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
VOCABULARY_ROWS = ("wte.weight", "lm_head.weight")
LLAMA_NAMES = {
    "wte": ("model.embed_tokens",),
    "ln_f": ("model.norm",),
    "lm_head": ("lm_head",),
    "ln_1": ("input_layernorm",),
    "ln_2": ("post_attention_layernorm",),
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "mlp.c_gate": ("mlp.gate_proj",),
    "mlp.c_fc": ("mlp.up_proj",),
    "mlp.c_proj": ("mlp.down_proj",),
}


def their_names(family: str, name: str) -> tuple[str, ...]:
    """What one of our tensors is called there: one name, or three that are stacked."""
    if family == "gpt2":
        return (name if name.startswith("lm_head.") else f"transformer.{name}",)
    path, _, leaf = name.rpartition(".")
    if not path.startswith("h."):
        return tuple(f"{there}.{leaf}" for there in LLAMA_NAMES[path])
    _, layer, part = path.split(".", 2)
    return tuple(f"model.layers.{layer}.{there}.{leaf}" for there in LLAMA_NAMES[part])


def hf_weights(model: GPT) -> dict[str, Tensor]:
    """The weights under their names: dead rows cut, GPT-2's matrices transposed.

    GPT-2's class always has biases: where ours has none they are zeros, which compute the same.
    """
    config, family = model.config, family_of(model.config)
    weights: dict[str, Tensor] = dict(named_weights(model))
    if family == "gpt2":
        shapes = _empty(replace(config, bias=True))
        zeros = {name: torch.zeros(shapes[name]) for name in shapes.keys() - weights.keys()}
        weights |= zeros
    found = {}
    for name, value in weights.items():
        live = value.detach()[: config.vocab_size] if name in VOCABULARY_ROWS else value.detach()
        names = their_names(family, name)
        for their_name, part in zip(names, live.chunk(len(names)), strict=True):
            turned = _transposed(family, name, part)
            found[their_name] = turned.clone(memory_format=torch.contiguous_format)
    return found


def ratchet_model(path: Path, config: GPTConfig, found: dict[str, Tensor]) -> GPT:
    """The network of this shape with these published weights, in float32.

    Raises: ValueError naming the first tensor that is missing, unknown or of another shape.
    """
    family = family_of(config)
    left = {_with_prefix(family, name): value for name, value in found.items()}
    left = {name: value for name, value in left.items() if not BUFFERS.search(name)}
    if config.tied and "lm_head.weight" in left:
        (embedding,) = their_names(family, "wte.weight")
        left.setdefault(embedding, left.pop("lm_head.weight"))
    weights = {}
    for name, shape in _empty(config).items():
        names = their_names(family, name)
        live = (config.vocab_size if name in VOCABULARY_ROWS else shape[0], *shape[1:])
        part_shape = (live[0] // len(names), *live[1:])
        parts = [_transposed(family, name, _take(path, left, there)) for there in names]
        for there, part in zip(names, parts, strict=True):
            _check_shape(path, there, tuple(part.shape), part_shape)
        value = torch.cat(parts).float()
        weights[name] = _with_padding_rows(value, shape[0]) if name in VOCABULARY_ROWS else value
    if left:
        raise ValueError(
            f"{path} holds {min(left)} (and {len(left) - 1} others), which a {CLASSES[family]} of "
            "its config.json does not have; the files do not belong together"
        )
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _with_padding_rows(live: Tensor, rows: int) -> Tensor:
    """`live` and below it, up to `rows`, its mean row. Shapes: (n, C) -> (rows, C).

    The training loss sees the logits of dead ids too. GPT-2's own logits are far below zero, so
    rows of zeros would take nearly all probability. exp of the mean logit is at most the mean of
    the exps, so 47 mean rows beside 50,257 take less than a thousandth, whatever the text.
    """
    mean = live.double().mean(0, keepdim=True).to(live.dtype)
    return torch.cat([live, mean.expand(rows - len(live), -1)])


def _transposed(family: str, name: str, value: Tensor) -> Tensor:
    """GPT-2's linear layers are stored as (in, out) there."""
    return value.T if family == "gpt2" and name.endswith(CONV1D) else value


def _with_prefix(family: str, name: str) -> str:
    """OpenAI's own files lack the `transformer.` (Llama's base model the `model.`)."""
    prefix = "transformer." if family == "gpt2" else "model."
    return name if name.startswith((prefix, "lm_head.")) else prefix + name


def _empty(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in named_weights(GPT(config))}


def _check_shape(path: Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise ValueError(
            f"{path}: tensor {name} is {found}, but config.json describes {wanted}; the files do "
            "not belong together"
        )


def _take(path: Path, left: dict[str, Tensor], name: str) -> Tensor:
    if name not in left:
        raise ValueError(f"{path} has no tensor {name}; give a whole copy of the model")
    if not left[name].is_floating_point():
        raise ValueError(
            f"{path}: tensor {name} is {left[name].dtype}, a quantised weight; give a model in "
            "float32, float16 or bfloat16"
        )
    return left.pop(name)
