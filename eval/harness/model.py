"""A checkpoint as a model of lm-evaluation-harness; importing this registers `ratchet`.

Requests with the same context share a row of a batch. A request that the model cannot answer costs
its document, or its task if that generates in a way that sampling does not have.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
import torch

from eval.harness.left_out import UNSCORABLE, LeftOut
from eval.harness.settings import GenerationSettings, generation_settings
from eval.sampling.decoding import PartialSample, sample_on_ranks
from eval.scoring.multiple_choice import check_losses, encode_together, why_unscorable
from eval.scoring.shared_context import SharedContext, score_contexts, truncated_contexts
from eval.subject import EvalOptions, Subject, find_on_ranks, subject_of
from eval.tasks.wikitext import text_windows
from model.precision import Precision
from parallel.ranks import Ranks, start
from storage.checkpoint_folder import weights_sha256
from storage.option_values import own_path

try:
    import lm_eval.models  # noqa: F401  # pyright: ignore[reportMissingImports]  (its own names)
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    from lm_eval.api.task import ConfigurableTask  # pyright: ignore[reportMissingImports]
except ImportError:  # the script reports it
    LM: Any = object
    register_model: Any = None
    ConfigurableTask: Any = None

log = logging.getLogger(__name__)


class RatchetLM(LM):
    """A checkpoint as a language model of the harness.

    Under torchrun every rank receives and answers every request. The scoring functions split the
    work over the ranks, so the harness does not need to know about them.
    """

    latest: "RatchetLM | None" = None
    """The last one of this process: the harness's own command line keeps its model to itself."""

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str | None = "auto",
        dtype: Precision = "auto",
        tokens_per_batch: int | None = None,
        **others: object,
    ) -> None:
        super().__init__()
        # The harness passes its sizes of batches to every model.
        unknown = sorted(others.keys() - {"batch_size", "max_batch_size"})
        if checkpoint is None or unknown or dtype not in get_args(Precision):
            wrong = f"{unknown[0]}={others[unknown[0]]}" if unknown else f"dtype={dtype}"
            raise ValueError(
                f"{'no checkpoint' if checkpoint is None else wrong} among the model's arguments, "
                "which are checkpoint=FOLDER, dtype=auto, bfloat16 or float32, tokens_per_batch=N"
            )
        self.options = EvalOptions(dtype=dtype, tokens_per_batch=tokens_per_batch)
        ranks = _ranks(device or "auto")
        self.checkpoint = find_on_ranks(own_path(str(checkpoint)), ranks)
        self.subject: Subject = subject_of(self.checkpoint, ranks)
        self.truncated = 0
        """Number of requests so far whose context was cut from the left to fit the model."""
        self.left_out = LeftOut()
        RatchetLM.latest = self
        plain = ConfigurableTask.process_results
        plain = getattr(plain, "__wrapped__", plain)  # of an earlier model of this process
        ConfigurableTask.process_results = self.left_out.without(plain)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log probability of each continuation, and whether greedy decoding would give it."""
        pairs = [request.args for request in requests]
        contexts, scorable = self._contexts(requests)
        self.left_out.warn()
        nats, missed = score_contexts(self.subject, contexts, self.options).T
        check_losses(nats, scorable)
        found = [UNSCORABLE] * len(pairs)
        for i, loss, misses in zip(scorable, nats, missed, strict=True):
            found[i] = (-float(loss), not misses)
        return self._cache("loglikelihood", pairs, found)

    def _contexts(self, requests: Sequence[Any]) -> tuple[list[SharedContext], list[int]]:
        """The contexts of all continuations that can be scored, and the indices of these."""
        contexts: list[SharedContext] = []
        scorable: list[int] = []
        T = self.subject.model.config.context_length
        numbered = groupby(enumerate(requests), key=lambda pair: pair[1].args[0])
        for context, group in ((context, list(pairs)) for context, pairs in numbered):
            texts = [request.args[1] for _, request in group]
            before, encoded = encode_together(self.subject.tokenizer, context, texts)
            fitting = []
            for (i, request), text, ids in zip(group, texts, encoded, strict=True):
                reason = why_unscorable(ids, T)
                if reason:
                    self.left_out.add_document(request, f"the ending {text[:40]!r} {reason}")
                else:
                    fitting.append(ids)
                    scorable.append(i)
            if fitting:
                fitted, truncated = truncated_contexts(before, tuple(fitting), T)
                contexts += fitted
                self.truncated += truncated
        return contexts, scorable

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log probability of each whole text, from windows that predict every token once."""
        texts = [request.args for request in requests]
        encode, end_of_text = self.subject.tokenizer.encode, self.subject.tokenizer.end_of_text
        T = self.subject.model.config.context_length
        windows = [list(text_windows(encode(text), end_of_text, T)) for (text,) in texts]
        owners = np.repeat(np.arange(len(texts)), [len(found) for found in windows])
        nats = score_contexts(self.subject, list(chain(*windows)), self.options)[:, 0]
        check_losses(nats, owners.tolist())
        totals = np.bincount(owners, nats, minlength=len(texts))
        return self._cache("loglikelihood_rolling", texts, (-totals).tolist())

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The generated text after each context, up to end-of-text or a stop string.

        A task whose settings cannot be honoured, or leave no room for a prompt, is left out.
        """
        pairs = [request.args for request in requests]
        texts = [""] * len(pairs)
        by_settings: dict[str, list[int]] = {}
        for i, (_, settings) in enumerate(pairs):
            by_settings.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(i)
        for indices in by_settings.values():
            try:
                settings = generation_settings(pairs[indices[0]][1], self.options.dtype)
                self._check_room(settings)
            except ValueError as error:
                for i in indices:
                    self.left_out.add_task(requests[i], str(error))
                continue
            unfinished = [
                PartialSample(prompt, (i, 0), self.subject.tokenizer, options)
                for i in indices
                for prompt in [self._prompt(pairs[i][0], settings.options.max_tokens)]
                for options in [settings.options_for(len(prompt))]
                if options is not None
            ]
            # Prompts of similar length in one batch need less room in the cache.
            unfinished.sort(key=lambda sample: -len(sample.ids))
            for sample in sample_on_ranks(self.subject, unfinished, settings.options):
                texts[sample.prompt_index] = sample.text
        return self._cache("generate_until", pairs, texts)

    def _check_room(self, settings: GenerationSettings) -> None:
        max_tokens, T = settings.options.max_tokens, self.subject.model.config.context_length
        if max_tokens >= T:
            raise ValueError(
                f"the task generates {max_tokens} tokens, which leaves a context_length of {T} no "
                "room for a prompt; use a model with a longer context, or --gen-kwargs "
                "max_gen_toks=N"
            )

    def _prompt(self, context: str, max_tokens: int) -> list[int]:
        """The last tokens of the context, so that `max_tokens` more fit: the harness's rule."""
        room = self.subject.model.config.context_length - max_tokens
        ids = self.subject.tokenizer.encode(context)
        self.truncated += len(ids) > room
        return ids[-room:] or [self.subject.tokenizer.end_of_text]

    @property
    def tokenizer_name(self) -> str:
        """The harness asks for it when a chat template is requested."""
        return self.subject.tokenizer.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """No template. Raises: ValueError if one is requested."""
        return self.apply_chat_template([]) if chat_template else ""

    def apply_chat_template(self, *_: object, **__: object) -> NoReturn:
        """Raises: ValueError, since models of Ratchet are trained on plain text."""
        raise ValueError(
            "the model has no chat template: it continues plain text; omit --apply_chat_template"
        )

    def get_model_info(self) -> dict[str, Any]:
        """What identifies the model, for the harness's own results file."""
        return {
            "checkpoint": str(self.checkpoint),
            "weights_sha256": weights_sha256(self.checkpoint),
            "dtype": self.options.dtype,
            "device": self.subject.ranks.device.type,
        }

    def _cache(self, kind: str, arguments: Sequence[Any], found: list[Any]) -> list[Any]:
        """Give the answers to the harness's cache, if it has one, and return them."""
        for given, answer in zip(arguments, found, strict=True):
            self.cache_hook.add_partial(kind, given, answer)
        return found


def check_installed() -> None:
    """Raises: ValueError if the harness is not installed."""
    if register_model is None:
        raise ValueError(
            "lm-evaluation-harness is not installed; pip install -c constraints.txt -e '.[lm-eval]'"
        )


def _ranks(device: str) -> Ranks:
    """This process as a rank on a device named by us or, such as cuda:0, by the harness."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return start(device)
    # cuda:0 is the harness's default, also on a machine without a GPU.
    if not torch.cuda.is_available():
        log.warning("device=%s, but torch finds no CUDA GPU: the CPU is used", device)
        return start("cpu")
    ranks = start("cuda")
    if ranks.world_size > 1 or number == str(ranks.device.index):
        return ranks  # under torchrun each rank has its own GPU
    gpus = torch.cuda.device_count()
    if not number.isdecimal() or int(number) >= gpus:
        raise ValueError(f"device={device} does not exist; use auto, cpu or cuda:0 to {gpus - 1}")
    torch.cuda.set_device(int(number))
    return replace(ranks, device=torch.device("cuda", int(number)))


if register_model is not None:
    register_model("ratchet")(RatchetLM)
