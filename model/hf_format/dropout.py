"""Dropout as the settings of transformers' classes, and back."""

from collections.abc import Mapping
from typing import Any

from model.config import LARGEST_DROPOUT

# The settings of each class, and their default there. Our network has one share for all places;
# the classes with rotary positions drop weights of attention only.
_NAMES = {
    "gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    "llama": ("attention_dropout",),
    "nanochat": ("attention_dropout",),
}
_DEFAULTS = {"gpt2": 0.1, "llama": 0.0, "nanochat": 0.0}


def dropout_settings(family: str, share: float) -> dict[str, float]:
    """The settings that a config.json needs, so that nothing is left to the class's default."""
    return dict.fromkeys(_NAMES[family], float(share))


def share_dropped(family: str, found: Mapping[str, Any]) -> float:
    """The largest share in a config.json; 0 if one is no share that our network takes.

    No weight depends on it, so a strange value makes no model unusable.
    """
    shares = [found.get(name, _DEFAULTS[family]) for name in _NAMES[family]]
    usable = all(type(share) in (int, float) and 0 <= share <= LARGEST_DROPOUT for share in shares)
    return float(max(shares)) if usable else 0.0
