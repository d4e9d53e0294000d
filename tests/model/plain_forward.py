"""The forward pass of every shape in plain formulas, to compare the network with."""

import math

import torch


def plain_logits(config, w, ids):
    """Logits from the weights `w` by name. Shapes: ids (B, T) -> (B, T, V)."""
    head = w["wte.weight"] if config.tied else w["lm_head.weight"]
    logits = plain_states(config, w, ids) @ head.T
    cap = config.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def plain_states(config, w, ids):
    """The normalised states after the last block. Shapes: ids (B, T) -> (B, T, C)."""
    L, T = config.n_layer, ids.size(1)
    x = w["wte.weight"][ids]
    if config.position == "learned":
        x = x + w["wpe.weight"][:T]
    if config.embedding_norm:
        x = _norm(config, w, "ln_e", x)
    embedded, first_values, results = x, None, []
    for layer in range(L):
        h = f"h.{layer}."
        if config.shortcuts:
            if layer >= L - L // 2:
                x = x + w["shortcuts.earlier"][layer - (L - L // 2)] * results[L - 1 - layer]
            x = w["shortcuts.stream"][layer] * x + w["shortcuts.embedding"][layer] * embedded
        q, k, v = _linear(w, h + "attn.c_attn", _norm(config, w, h + "ln_1", x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (config.n_head, -1)).transpose(1, 2) for part in (q, k, v))
        if config.position == "rope":
            q, k = _rotated(q), _rotated(k)
        if config.qk_norm:
            q, k = (part / (part.square().mean(-1, True) + 1e-5).sqrt() for part in (q, k))
        if config.shortcuts:
            first_values = v if first_values is None else first_values
            share = w["shortcuts.first_values"][layer]
            v = (1 - share) * v + share * first_values
        scores = q @ k.mT / math.sqrt(config.head_width)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + _linear(w, h + "attn.c_proj", attended)
        x = x + _mlp(config, w, h, _norm(config, w, h + "ln_2", x))
        results.append(x)
    return _norm(config, w, "ln_f", x)


def _norm(config, w, name, x):
    if config.norm == "layernorm":
        x = x - x.mean(-1, True)
    x = x / (x.square().mean(-1, True) + 1e-5).sqrt()
    return x * w.get(name + ".weight", 1.0) + w.get(name + ".bias", 0.0)


def _linear(w, name, x):
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)


def _mlp(config, w, h, x):
    hidden = _linear(w, h + "mlp.c_fc", x)
    if config.mlp == "relu2":
        hidden = hidden.clamp(min=0) ** 2
    elif config.mlp == "swiglu":
        gate = _linear(w, h + "mlp.c_gate", x)
        hidden = gate * torch.sigmoid(gate) * hidden
    else:
        inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
        hidden = 0.5 * hidden * (1 + torch.tanh(inner))
    return _linear(w, h + "mlp.c_proj", hidden)


def _rotated(x):
    """Element i and element i + D/2 as one complex number, turned by the position."""
    half = x.size(-1) // 2
    angles = torch.arange(x.size(2))[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones(()), angles)
    return torch.cat((turned.real, turned.imag), -1)
