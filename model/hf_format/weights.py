"""The weights of a network under Hugging Face's names, and back.

A tensor of Ratchet is one tensor of Hugging Face, or three stacked ones (Llama's and NanoChat's
query, key and value). Hugging Face stores GPT-2's linear layers transposed (`Conv1D`), and the
query and key of NanoChat with the halves of each head exchanged.
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

# Causal masks and rotary frequencies, which some published files contain and no model needs.
_BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_VOCABULARY_ROWS = ("wte.weight", "lm_head.weight")
_WIDENED_EXACTLY = (torch.float32, torch.bfloat16, torch.float16)
_LLAMA_NAMES = {
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
_NANOCHAT_NAMES = {**_LLAMA_NAMES, "mlp.c_fc": ("mlp.fc1",), "mlp.c_proj": ("mlp.fc2",)}
_ROTATED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")


def _hf_names(family: str, name: str) -> tuple[str, ...]:
    """Hugging Face's name of a tensor of ours, or its three names if ours is a stack."""
    if family == "gpt2":
        return (name if name.startswith("lm_head.") else f"transformer.{name}",)
    names = _NANOCHAT_NAMES if family == "nanochat" else _LLAMA_NAMES
    path, _, leaf = name.rpartition(".")
    if not path.startswith("h."):
        return tuple(f"{hf_name}.{leaf}" for hf_name in names[path])
    _, layer, part = path.split(".", 2)
    return tuple(f"model.layers.{layer}.{hf_name}.{leaf}" for hf_name in names[part])


def hf_weights(model: GPT) -> dict[str, Tensor]:
    """The weights under Hugging Face's names: without padding rows, GPT-2's matrices transposed.

    Hugging Face's GPT-2 always has biases; where ours has none, they are zeros.
    """
    config, family = model.config, family_of(model.config)
    weights: dict[str, Tensor] = dict(named_weights(model))
    if family == "gpt2":
        shapes = _empty(replace(config, bias=True))
        zeros = {name: torch.zeros(shapes[name]) for name in shapes.keys() - weights.keys()}
        weights |= zeros
    found = {}
    for name, value in weights.items():
        rows = value.detach()[: config.vocab_size] if name in _VOCABULARY_ROWS else value.detach()
        names = _hf_names(family, name)
        for hf_name, part in zip(names, rows.chunk(len(names)), strict=True):
            rearranged = _halves_exchanged(config, hf_name, _transposed(family, name, part))
            found[hf_name] = rearranged.clone(memory_format=torch.contiguous_format)
    return found


def without_zero_biases(config: GPTConfig, found: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The published weights of a GPT-2 shape without its biases, if all of them are zero."""
    family = family_of(config)
    unbiased = _empty(replace(config, bias=False)).keys()
    own = [name for name in _empty(replace(config, bias=True)) if name not in unbiased]
    biases = {hf_name for name in own for hf_name in _hf_names(family, name)}
    given = {name: value for name, value in found.items() if _with_prefix(family, name) in biases}
    if len(given) < len(biases) or any(value.any() for value in given.values()):
        return None
    return {name: value for name, value in found.items() if name not in given}


def is_untrained(found: dict[str, Tensor]) -> bool:
    """Whether the gains of all norms are 1, as only initialisation leaves them."""
    gains = [v for name, v in found.items() if re.search(r"(^|\.)ln_\w+\.weight$", name)]
    return all(bool((gain == 1).all()) for gain in gains)


def ratchet_model(path: Path, config: GPTConfig, found: dict[str, Tensor], rows: int) -> GPT:
    """The network of this shape with these published weights, in float32.

    `rows`: of the published embedding and head. Those beyond `config.vocab_size` are cut.
    Raises: ValueError naming the first tensor that is missing, unknown, of another shape or type,
    not finite, or a second head of a tied model.
    """
    family = family_of(config)
    unused = {_with_prefix(family, name): value for name, value in found.items()}
    unused = {name: value for name, value in unused.items() if not _BUFFERS.search(name)}
    if config.tied and "lm_head.weight" in unused:  # some files hold a tied matrix twice
        (embedding,) = _hf_names(family, "wte.weight")
        head = unused.pop("lm_head.weight")
        if not torch.equal(unused.setdefault(embedding, head).float(), head.float()):
            raise ValueError(
                f"{path}: lm_head.weight differs from {embedding}, but config.json has "
                "tie_word_embeddings=True; set that to false if the head is a matrix of its own"
            )
    weights = {}
    for name, shape in _empty(config).items():
        names = _hf_names(family, name)
        length = rows if name in _VOCABULARY_ROWS else shape[0]
        part_shape = (length // len(names), *shape[1:])
        parts = [_transposed(family, name, _pop(path, unused, hf_name)) for hf_name in names]
        for hf_name, part in zip(names, parts, strict=True):
            _check_shape(path, hf_name, tuple(part.shape), part_shape)
        pairs = zip(names, parts, strict=True)
        value = torch.cat([_halves_exchanged(config, *pair) for pair in pairs]).float()
        check_finite(path, names, value)
        if name in _VOCABULARY_ROWS:
            value = _with_padding_rows(value[: config.vocab_size], shape[0])
        weights[name] = value
    if unused:
        raise ValueError(
            f"{path} holds {min(unused)} (and {len(unused) - 1} others), which a {CLASSES[family]} "
            "of its config.json does not have; the files do not belong together"
        )
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def check_finite(path: Path, names: tuple[str, ...], value: Tensor) -> None:
    """Raises: ValueError naming the tensors, whose weights are `value`, if one is not finite."""
    wrong = int(value.numel() - value.isfinite().sum())
    if wrong:
        raise ValueError(
            f"{path}: {wrong} of {value.numel()} weights in {' and '.join(names)} are NaN or "
            "infinite; the model has diverged or the file is damaged, use another one"
        )


def _with_padding_rows(real: Tensor, rows: int) -> Tensor:
    """The rows of real ids, filled up with their mean. Shapes: (n, C) -> (rows, C)."""
    # The training loss includes the logits of padding ids. GPT-2's logits are far below zero, so
    # rows of zeros would take nearly all probability. exp of the mean logit is at most the mean of
    # the exps: 47 mean rows beside 50,257 take less than a thousandth, whatever the text.
    mean = real.double().mean(0, keepdim=True).to(real.dtype)
    return torch.cat([real, mean.expand(rows - len(real), -1)])


def _transposed(family: str, name: str, value: Tensor) -> Tensor:
    """Hugging Face stores the linear layers of GPT-2 as (in, out), ours are (out, in)."""
    return value.T if family == "gpt2" and name.endswith(_CONV1D) else value


def _halves_exchanged(config: GPTConfig, hf_name: str, value: Tensor) -> Tensor:
    """NanoChat's queries and keys with the two halves of every head's rows exchanged.

    Its rotation is by the opposite angle, which is ours of exchanged halves, exchanged again.
    Shapes: (C, C) -> (C, C).
    """
    if family_of(config) != "nanochat" or not hf_name.endswith(_ROTATED):
        return value
    return value.unflatten(0, (config.n_head, 2, -1)).flip(1).flatten(0, 2)


def _with_prefix(family: str, name: str) -> str:
    """The name with `transformer.` (Llama: `model.`), which files of a base model do not have."""
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


def _pop(path: Path, unused: dict[str, Tensor], name: str) -> Tensor:
    if name not in unused:
        raise ValueError(f"{path} has no tensor {name}; give a complete copy of the model")
    if unused[name].dtype not in _WIDENED_EXACTLY:
        raise ValueError(
            f"{path}: tensor {name} is {unused[name].dtype}, which float32 cannot represent as it "
            "was meant (quantised weights have scales); give a model in float32, float16 or "
            "bfloat16"
        )
    return unused.pop(name)
