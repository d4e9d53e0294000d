"""The preset own-text: a small `modern` network, sized by the text and the machine."""

import logging
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from data_prep.dataset.shards import DataSet
from data_prep.order.training_data import TrainingData, open_training_data
from data_prep.worker_processes import default_workers
from eval.training_config import EvalConfig, SampleConfig
from model.config import GPTConfig
from model.estimates.flops import matmul_flops_per_token
from model.estimates.parameters import count_parameters
from model.shapes import SHAPES
from parallel.ranks import world_size_from_environment
from storage.option_values import AtMost
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from storage.terminal.quantities import counted
from train.config import Config
from train.presets import PRESETS

log = logging.getLogger(__name__)

_POINTS = 10  # validations after the one of step 0
_LEAST_STEPS, _MOST_STEPS = 20, 20_000
_FEW_STEPS = 50  # a tiny text has smaller batches instead
_LEAST_BATCH = 512  # tokens: a window for each of eight processes
_LEAST_CONTEXT = 8
# Three minutes, without the start and the evaluations.
_SECONDS = 150
# What small networks reach: on a core, measured (bench/LOG.md); on a GPU, assumed.
_CORE_FLOPS, _GPU_FLOPS = 40e9, 1e14
_GAIN = 0.25  # of a core beyond two: small matrix products gain little from more (assumed)
_MOST_CORES = 16
_PASSES = 6  # over the text, after which the validation loss of a small text rises (bench/LOG.md)
_MOST_WORSE = 3  # of ten validations, before a text that is repeated is taken as learned by heart
_READ_TOKENS = 64
_LEAST_WORDS, _PROMPT_WORDS, _PROMPT_CHARACTERS = 2, 5, 40
_SENTENCE_END = re.compile(r"[.!?][\"'\u201d\u2019)]*\s+|\n\s*")


@dataclass(frozen=True)
class _Size:
    """A network and its batch."""

    n_layer: int
    n_embd: int
    context_length: int
    batch_tokens: int

    def network(self, n_vocab: int) -> GPTConfig:
        """The network for a tokenizer of `n_vocab` ids."""
        return replace(
            SHAPES["modern"],
            n_layer=self.n_layer,
            n_head=4 if self.n_embd == 128 else self.n_embd // 64,
            n_embd=self.n_embd,
            context_length=self.context_length,
            vocab_size=n_vocab,
        )


_SIZES = (
    _Size(n_layer=4, n_embd=128, context_length=64, batch_tokens=1024),
    _Size(n_layer=4, n_embd=128, context_length=128, batch_tokens=2048),
    _Size(n_layer=6, n_embd=256, context_length=256, batch_tokens=8192),
    _Size(n_layer=8, n_embd=512, context_length=512, batch_tokens=32_768),
)


@dataclass(frozen=True)
class Choice:
    """What is chosen for a text and a machine."""

    network: GPTConfig
    batch_tokens: int
    steps: int

    def passes(self, tokens: int) -> float:
        """How often a text of `tokens` tokens is passed over."""
        return self.steps * self.batch_tokens / max(tokens, 1)


def choose(tokens: int, val_tokens: int, n_vocab: int, flops: float) -> Choice:
    """The largest network that sees half a token for each of its weights, or else the smallest.

    `tokens` and `val_tokens` are those of the data set, `flops` what the machine does in the time
    of a run. The text is passed over six times at most, for then it begins to be learned by heart.
    Raises: ValueError for a text that is too short.
    """
    chosen = None
    for size in _SIZES:
        network = size.network(n_vocab)
        seen = min(_PASSES * tokens, flops / matmul_flops_per_token(network))
        parameters = count_parameters(network)
        if chosen is None or seen >= (parameters.total - parameters.token_embedding) / 2:
            batch = size.batch_tokens
            while seen / batch < _FEW_STEPS and batch > _LEAST_BATCH:
                batch //= 2
            steps = min(max(int(seen / batch), _LEAST_STEPS), _MOST_STEPS)
            chosen = Choice(network, batch, steps // _POINTS * _POINTS)
    assert chosen is not None
    context = fitted_context(chosen.network.context_length, tokens, val_tokens)
    return replace(chosen, network=replace(chosen.network, context_length=context))


def fitted_context(longest: int, tokens: int, val_tokens: int) -> int:
    """The longest context, halved from `longest`, of which both splits hold a window.

    Raises: ValueError if a split is too short for any.
    """
    context = longest
    while context >= max(min(tokens, val_tokens), _LEAST_CONTEXT):
        context //= 2
    if context < _LEAST_CONTEXT:
        raise ValueError(
            f"the text is too short: {tokens} tokens to train on and {val_tokens} to validate on; "
            "give at least a page of text, or prepare it with a larger --val-fraction"
        )
    return context


@cache  # a command line is read more than once, and what is chosen is printed once
def own_text_config(data: tuple[Path, ...], out: Path) -> Config:
    """The run on a data set or a mixture. What is chosen is printed if `out` holds no run yet.

    Raises: ValueError if there is no data set, or its text is too short.
    """
    found = open_training_data(data)
    tokens, n_vocab = found.tokens_before_a_repeat, found.sources[0].manifest.tokenizer.n_vocab
    gpus = world_size_from_environment() if torch.cuda.is_available() else 0
    cores = default_workers()
    flops = _SECONDS * (gpus * _GPU_FLOPS or _worth(cores) * _CORE_FLOPS)
    prompts, val_tokens = prompts_from(found), AtMost(262_144 if gpus else 16_384)
    chosen = choose(tokens, most_val_tokens(found), n_vocab, flops)
    config = _config(data, out, chosen, prompts, val_tokens, chosen.passes(tokens) >= 1)
    if not RunFolder(out).config.is_file():
        machine = counted(gpus, "GPU") if gpus else counted(cores, "CPU core")
        _log_choice(config, f"{tokens:,} tokens of text and {machine}", chosen.passes(tokens))
    return config


def _worth(cores: int) -> float:
    """How many cores these are worth, if two are worth two."""
    return min(cores, 2 + _GAIN * (min(cores, _MOST_CORES) - 2))


def _log_choice(config: Config, for_what: str, passes: float) -> None:
    """Print what was chosen, as flags that change it."""
    log.info("chosen for %s; flags change it:", for_what)
    network = config.model
    log.info(
        "  --model.n-layer %d --model.n-head %d --model.n-embd %d --context-length %d",
        *(network.n_layer, network.n_head, network.n_embd, network.context_length),
    )
    log.info(
        "  --batch-tokens %d --steps %d (%.3g times the text) --eval.every %d",
        *(config.batch_tokens, config.steps, passes, config.eval.every),
    )


def _config(
    data: tuple[Path, ...],
    out: Path,
    chosen: Choice,
    prompts: tuple[str, ...],
    val_tokens: AtMost,
    repeats: bool,
) -> Config:
    every = chosen.steps // _POINTS
    return replace(
        PRESETS["demo"],
        data=data,
        out=out,
        steps=chosen.steps,
        batch_tokens=chosen.batch_tokens,
        stop_when_worse=_MOST_WORSE if repeats else None,
        # The number of ids is the data set's, as everywhere.
        model=replace(chosen.network, vocab_size=GPTConfig.vocab_size),
        eval=EvalConfig(every=AtMost(every), val_tokens=val_tokens, tasks_every=0, tasks=()),
        sample=SampleConfig(
            every=AtMost(every * _POINTS // 2), prompts=prompts, max_tokens=64, temperature=0.8
        ),
        save=SaveConfig(every=every),
    )


def most_val_tokens(data: TrainingData) -> int:
    """Validation tokens of the source that has most: of the others a validation reads fewer."""
    return max(source.manifest.val.tokens for source in data.sources)


def prompts_from(found: TrainingData) -> tuple[str, ...]:
    """The first words of the first and of the middle document of validation, or of its middle.

    Of a mixture those of its first source that has some; nothing without validation.
    """
    some = [source.data for source in found.sources if source.manifest.val.documents]
    return _prompts_of(some[0]) if some else ()


def _prompts_of(data: DataSet) -> tuple[str, ...]:
    val, tokenizer = data.split("val"), data.tokenizer()
    first = val.read_document(0)[1:]
    middle = val.read_document(val.documents // 2)[1:]
    if val.documents == 1:
        middle = first[len(first) // 2 :]
    cut = data.manifest.split_rule["split"] == "tail"  # perhaps within a word
    starts = ((first, cut), (middle, cut or val.documents == 1))
    found = (_words(tokenizer.decode(t[:_READ_TOKENS].tolist()), inside) for t, inside in starts)
    return tuple(dict.fromkeys(found))


def _words(text: str, starts_inside: bool) -> str:
    """The first whole words of a text that may end within a word, and start within a sentence."""
    end = _SENTENCE_END.search(text) if starts_inside else None
    if end and len(text[end.end() :].split()) <= _LEAST_WORDS:
        end = None
    begun = text[end.end() :] if end else text
    words = "".join(c if c.isprintable() and c != "\ufffd" else " " for c in begun).split(" ")
    whole = [word for word in words[starts_inside and not end : -1] if word]
    chosen = " ".join(whole[:_PROMPT_WORDS]) or text.strip("\ufffd").strip()
    return chosen[:_PROMPT_CHARACTERS]
