"""Runs any task of lm-evaluation-harness on a checkpoint, without exporting it first.

    python eval/lm_eval_model.py --checkpoint runs/gpt2/checkpoints/latest --tasks blimp

Runs on one process or under torchrun. The harness (`pip install -c constraints.txt -e
'.[lm-eval]'`) supplies the tasks, prompts and metrics; this file supplies the model. Requests with
the same context share a row of a batch. Importing this file registers the model `ratchet`.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from eval.sampling.decoding import PartialSample, sample_on_ranks
from eval.sampling.next_token import GenerateOptions
from eval.scoring.multiple_choice import check_losses, contexts_of_ids, encode_together
from eval.scoring.shared_context import score_contexts
from eval.subject import EvalOptions, Subject, load_subject
from eval.tasks.wikitext import text_windows
from model.precision import Precision
from parallel.ranks import silence_other_ranks, start, stop, user_errors
from storage.atomic import write_json
from storage.script_options import parse_options

try:
    import lm_eval.models  # noqa: F401  # pyright: ignore[reportMissingImports]  (its own names)
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
except ImportError:  # main() reports it
    LM: Any = object
    register_model: Any = None

_MAX_GENERATED = 256  # the harness's default for Hugging Face models
# Names that tasks use for the limit of new tokens, in the order in which they are tried.
_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

log = logging.getLogger("eval")


class RatchetLM(LM):
    """A checkpoint as a language model of the harness.

    Under torchrun every rank receives and answers every request. The scoring functions split the
    work over the ranks, so the harness does not need to know about them.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str = "auto",
        dtype: Precision = "auto",
        tokens_per_batch: int | None = None,
        **_unused: object,  # the harness passes batch_size and others to every model
    ) -> None:
        super().__init__()
        self.options = EvalOptions(dtype=dtype, tokens_per_batch=tokens_per_batch)
        self.subject: Subject = load_subject(Path(checkpoint), start(device))
        self.truncated = 0
        """Number of requests so far whose context was cut from the left to fit the model."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log probability of each continuation, and whether greedy decoding would give it."""
        pairs = [request.args for request in requests]
        tokenizer = self.subject.tokenizer
        encodings = (
            encode_together(tokenizer, context, [text for _, text in group])
            for context, group in groupby(pairs, key=lambda pair: pair[0])
        )
        contexts, truncated = contexts_of_ids(encodings, self.subject.model.config.context_length)
        self.truncated += truncated
        nats, missed = score_contexts(self.subject, contexts, self.options).T
        check_losses(nats, range(len(pairs)))
        found = [(-float(loss), not misses) for loss, misses in zip(nats, missed, strict=True)]
        return self._cache("loglikelihood", pairs, found)

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
        """The generated text after each context, up to end-of-text or a stop string."""
        pairs = [request.args for request in requests]
        texts = [""] * len(pairs)
        by_settings: dict[str, list[int]] = {}
        for i, (_, settings) in enumerate(pairs):
            by_settings.setdefault(json.dumps(settings, sort_keys=True), []).append(i)
        for indices in by_settings.values():
            options = self._generation_options(pairs[indices[0]][1])
            unfinished = [
                PartialSample(prompt, (i, 0), self.subject.tokenizer, options)
                for i in indices
                for prompt in [self._prompt(pairs[i][0], options.max_tokens)]
            ]
            # Prompts of similar length in one batch need less room in the cache.
            unfinished.sort(key=lambda sample: -len(sample.ids))
            for sample in sample_on_ranks(self.subject, unfinished, options):
                texts[sample.prompt_index] = sample.text
        return self._cache("generate_until", pairs, texts)

    def _prompt(self, context: str, max_tokens: int) -> list[int]:
        """The last tokens of the context, so that `max_tokens` more fit: the harness's rule."""
        room = self.subject.model.config.context_length - max_tokens
        if room < 1:
            raise ValueError(
                f"the task generates {max_tokens} tokens, which leaves a context_length of "
                f"{self.subject.model.config.context_length} no room for a prompt; use a model "
                "with a longer context, or --gen-kwargs max_gen_toks=N"
            )
        ids = self.subject.tokenizer.encode(context)
        self.truncated += len(ids) > room
        return ids[-room:] or [self.subject.tokenizer.end_of_text]

    def _generation_options(self, settings: dict[str, Any]) -> GenerateOptions:
        """Convert a task's generation settings; greedy unless they set a temperature."""
        limits = [int(settings[name]) for name in _TOKEN_LIMITS if settings.get(name) is not None]
        stops = settings.get("until") or ()
        stops = (stops,) if isinstance(stops, str) else tuple(stops)
        sampled = settings.get("do_sample", True)
        return GenerateOptions(
            max_tokens=limits[0] if limits else _MAX_GENERATED,
            temperature=float(settings.get("temperature", 0.0)) if sampled else 0.0,
            top_k=int(settings.get("top_k", 50)),
            top_p=float(settings.get("top_p", 1.0)),
            stop=tuple(stop for stop in stops if stop),
            dtype=self.options.dtype,
        )

    def _cache(self, kind: str, arguments: Sequence[Any], found: list[Any]) -> list[Any]:
        """Give the answers to the harness's cache, if it has one, and return them."""
        for given, answer in zip(arguments, found, strict=True):
            self.cache_hook.add_partial(kind, given, answer)
        return found


if register_model is not None:
    register_model("ratchet")(RatchetLM)


@dataclass(frozen=True)
class Arguments:
    """Evaluate a checkpoint with lm-evaluation-harness."""

    checkpoint: Path
    """Checkpoint folder, such as runs/gpt2/checkpoints/latest."""
    tasks: tuple[str, ...]
    """Tasks, groups or tags of the harness, or .yaml files; separated by spaces or commas."""
    few_shot: int | None = None
    """Number of solved examples before each question; default: as each task defines it."""
    limit: int | None = None
    """Use only the first N items of each task; default: all."""
    include_path: Path | None = None
    """Folder with more tasks as .yaml files."""
    gen_kwargs: str | None = None
    """Replaces the tasks' generation settings, such as max_gen_toks=64,temperature=0.7."""
    json: Path | None = None
    """JSON file to write the numbers to, by task."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses CUDA if it is available."""
    dtype: Precision = "auto"
    """Precision of matrix products; auto: bfloat16 on CUDA, float32 on the CPU."""
    tokens_per_batch: int | None = None
    """Tokens in one batch; default: 2,048 on the CPU, 16,384 on CUDA."""


def _run_harness(arguments: Arguments) -> tuple[RatchetLM, dict[str, Any]]:
    """Run the harness. Returns the model and, on rank 0, the harness's results.

    Raises: ValueError if the harness does not know a task.
    """
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    included = str(arguments.include_path) if arguments.include_path else None
    manager = TaskManager(include_path=included)
    tasks = [name for text in arguments.tasks for name in text.split(",") if name]
    unknown = [n for n in tasks if not (n.endswith(".yaml") or n in manager.all_tasks)]
    if unknown or not tasks:
        raise ValueError(
            f"lm-evaluation-harness has no task {', '.join(unknown) or '(none was given)'}; "
            "`lm-eval ls tasks` lists those that it has"
        )
    model = RatchetLM(
        arguments.checkpoint, arguments.device, arguments.dtype, arguments.tokens_per_batch
    )
    found = simple_evaluate(
        model,
        tasks=tasks,
        num_fewshot=arguments.few_shot,
        limit=arguments.limit,
        task_manager=manager,
        gen_kwargs=arguments.gen_kwargs,
        log_samples=False,
    )
    return model, dict(found or {})


def main() -> None:
    """Parse the options, run the harness, print its table."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments)
        if register_model is None:
            raise ValueError(
                "lm-evaluation-harness is not installed; "
                "pip install -c constraints.txt -e '.[lm-eval]'"
            )
        from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

        model, found = _run_harness(arguments)
        if model.subject.ranks.is_main:
            log.info("%s", make_table(found))
            if model.truncated:
                log.warning("%d contexts were cut from the left to fit the model", model.truncated)
            if arguments.json is not None:
                write_json(arguments.json, found["results"])
    stop()


if __name__ == "__main__":
    main()
