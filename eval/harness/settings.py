"""The generation settings of a harness task as options of our sampling; the rest is refused.

A setting that would be ignored gives the text of another task without a word:
https://github.com/EleutherAI/lm-evaluation-harness/issues/2726
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from eval.sampling.next_token import GenerateOptions
from model.precision import Precision

_MAX_GENERATED = 256  # the harness's default for Hugging Face models
# Names that tasks use for the limit of new tokens, in the order in which they are tried.
_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_HONOURED = {
    *_TOKEN_LIMITS,
    *("until", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_length"),
    "seed",
}
# Settings of transformers that our sampling lacks, with the values that change no text.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "min_p": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "penalty_alpha": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "use_cache": (True, False),
    "skip_special_tokens": (True, False),
}
_CURE = "omit it, or replace it with --gen-kwargs"


@dataclass(frozen=True)
class GenerationSettings:
    """How a task generates."""

    options: GenerateOptions
    max_length: int | None
    """Limit of prompt and text together; None: only `options.max_tokens` limits the text."""

    def options_for(self, prompt_length: int) -> GenerateOptions | None:
        """The options after a prompt of this many tokens; None if it leaves no room for a text."""
        if self.max_length is None:
            return self.options
        room = self.max_length - prompt_length
        return replace(self.options, max_tokens=room) if room > 0 else None


def generation_settings(found: Mapping[str, Any], dtype: Precision) -> GenerationSettings:
    """Convert a task's generation settings; greedy unless they set a temperature.

    `top_k` keeps exactly that many tokens; transformers keeps all that tie with the last one.

    Raises: ValueError naming a setting that sampling does not have, or a value that it cannot use.
    """
    given = {name: value for name, value in found.items() if value is not None}
    for name, value in given.items():
        if name not in _HONOURED and value not in _WITHOUT_EFFECT.get(name, ()):
            raise ValueError(f"generation setting {name}={value!r:.80} is not supported; {_CURE}")
    limits = [_number(given, name, int) for name in _TOKEN_LIMITS if name in given]
    temperature = _number(given, "temperature", float)
    if temperature is None:  # a null switches the division off, an absent one sampling
        temperature = 1.0 if "temperature" in found and given.get("do_sample") else 0.0
    # None switches a filter of transformers off; without the key its default counts.
    top_k = 0 if "top_k" in found and "top_k" not in given else _number(given, "top_k", int)
    options = GenerateOptions(
        max_tokens=limits[0] if limits and limits[0] is not None else _MAX_GENERATED,
        temperature=temperature if _switch(given, "do_sample", True) else 0.0,
        top_k=GenerateOptions.top_k if top_k is None else top_k,
        top_p=_or_default(_number(given, "top_p", float), GenerateOptions.top_p),
        repetition_penalty=_or_default(_number(given, "repetition_penalty", float), 1.0),
        seed=int(_or_default(_number(given, "seed", int), GenerateOptions.seed)),
        stop=_stop_strings(given.get("until", ())),
        dtype=dtype,
    )
    return GenerationSettings(options, _number(given, "max_length", int))


def _or_default(value: float | None, default: float) -> float:
    return default if value is None else value


def _number(given: Mapping[str, Any], name: str, kind: type) -> Any:
    """The setting as an int or float; None if it is not given."""
    value = given.get(name)
    if value is None:
        return None
    try:
        number = kind(value)
        exact = not isinstance(value, bool) and number == float(value)
    except (TypeError, ValueError, OverflowError):
        number, exact = None, False
    if not exact:
        raise ValueError(
            f"generation setting {name}={value!r:.80} is not "
            f"{'a whole number' if kind is int else 'a number'}; {_CURE}"
        )
    return number


def _switch(given: Mapping[str, Any], name: str, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"generation setting {name}={value!r:.80} is not true or false; {_CURE}")
    return value


def _stop_strings(found: Any) -> tuple[str, ...]:
    stops = (found,) if isinstance(found, str) else found
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError(f"generation setting until={found!r:.80} is not a list of texts; {_CURE}")
    return tuple(stop for stop in stops if stop)
