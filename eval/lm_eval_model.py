"""Any task of lm-evaluation-harness on a checkpoint of ours, without an export.

    python eval/lm_eval_model.py --checkpoint runs/gpt2/checkpoints/latest --tasks blimp

Alone or under torchrun. The harness (`pip install -c constraints.txt -e '.[lm-eval]'`) brings the
tasks, their prompts and their numbers; the model, its tokenizer and the batches are ours: requests
that share a context share a row. Importing this file registers the model `ratchet` there.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from eval.sampling.decoding import PartialSample, sample_on_ranks
from eval.sampling.next_token import GenerateOptions
from eval.scoring.multiple_choice import check_losses, contexts_of_ids, encode_together
from eval.scoring.shared_context import score_contexts
from eval.subject import EvalOptions, Subject, load_subject
from eval.tasks.wikitext import text_windows
from model.precision import Precision
from parallel.ranks import silence_other_ranks, start, stop, user_errors
from storage.atomic import write_json

try:
    import lm_eval.models  # noqa: F401  # pyright: ignore[reportMissingImports]  (its own names)
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
except ImportError:  # main() says so
    LM: Any = object
    register_model: Any = None

MAX_GENERATED = 256  # the harness's own default for Hugging Face models
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

log = logging.getLogger("eval")


class RatchetLM(LM):
    """A checkpoint as the harness's language model.

    Under torchrun every rank answers every request: the work is dealt out below, where the results
    are the same for any number of ranks, and so the harness need not know of them.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str = "auto",
        dtype: Precision = "auto",
        tokens_per_batch: int | None = None,
        **_of_the_harness: object,  # batch_size and the like, which are ours to choose
    ) -> None:
        super().__init__()
        self.options = EvalOptions(dtype=dtype, tokens_per_batch=tokens_per_batch)
        self.subject: Subject = load_subject(Path(checkpoint), start(device))
        self.truncated = 0
        """Requests so far whose context lost its beginning because it did not fit the model."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For each (context, continuation) its log probability, and whether greedy text is it."""
        pairs = [request.args for request in requests]
        tokenizer = self.subject.tokenizer
        encodings = (
            encode_together(tokenizer, context, [text for _, text in group])
            for context, group in groupby(pairs, key=lambda pair: pair[0])
        )
        trees, truncated = contexts_of_ids(encodings, self.subject.model.config.context_length)
        self.truncated += truncated
        nats, unlikely = score_contexts(self.subject, trees, self.options).T
        check_losses(nats, range(len(pairs)))
        found = [(-float(loss), not missed) for loss, missed in zip(nats, unlikely, strict=True)]
        return self._remember("loglikelihood", pairs, found)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log probability of each whole text, in windows that predict every token once."""
        texts = [request.args for request in requests]
        encode, end_of_text = self.subject.tokenizer.encode, self.subject.tokenizer.end_of_text
        T = self.subject.model.config.context_length
        windows = [list(text_windows(encode(text), end_of_text, T)) for (text,) in texts]
        owners = np.repeat(np.arange(len(texts)), [len(trees) for trees in windows])
        nats = score_contexts(self.subject, [t for trees in windows for t in trees], self.options)[
            :, 0
        ]
        check_losses(nats, owners.tolist())
        totals = np.bincount(owners, nats, minlength=len(texts))
        return self._remember("loglikelihood_rolling", texts, (-totals).tolist())

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What follows each context, until end-of-text or one of the request's stop strings."""
        pairs = [request.args for request in requests]
        texts = [""] * len(pairs)
        alike: dict[str, list[int]] = {}
        for i, (_, settings) in enumerate(pairs):
            alike.setdefault(json.dumps(settings, sort_keys=True), []).append(i)
        for places in alike.values():
            options = self._generation(pairs[places[0]][1])
            drafts = [
                PartialSample(prompt, (i, 0), self.subject.tokenizer, options)
                for i in places
                for prompt in [self._prompt(pairs[i][0], options.max_tokens)]
            ]
            drafts.sort(key=lambda draft: -len(draft.ids))  # so that a batch is of like lengths
            for sample in sample_on_ranks(self.subject, drafts, options):
                texts[sample.prompt_index] = sample.text
        return self._remember("generate_until", pairs, texts)

    def _prompt(self, context: str, max_tokens: int) -> list[int]:
        """The context's last tokens, with room for what follows: the harness's rule."""
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

    def _generation(self, settings: dict[str, Any]) -> GenerateOptions:
        """Our options for a task's; greedy unless it says otherwise."""
        limits = [int(settings[name]) for name in TOKEN_LIMITS if settings.get(name) is not None]
        stops = settings.get("until") or ()
        stops = (stops,) if isinstance(stops, str) else tuple(stops)
        sampled = settings.get("do_sample", True)
        return GenerateOptions(
            max_tokens=limits[0] if limits else MAX_GENERATED,
            temperature=float(settings.get("temperature", 0.0)) if sampled else 0.0,
            top_k=int(settings.get("top_k", 50)),
            top_p=float(settings.get("top_p", 1.0)),
            stop=tuple(stop for stop in stops if stop),
            dtype=self.options.dtype,
        )

    def _remember(self, kind: str, arguments: Sequence[Any], found: list[Any]) -> list[Any]:
        """`found`, known to the harness's own cache, if it keeps one."""
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
    """Names of the harness's tasks, groups or tags, or .yaml files; also with commas between."""
    few_shot: int | None = None
    """Solved examples before each question; default: each task's own number."""
    limit: int | None = None
    """Only the first so many items of each task; default: all."""
    include_path: Path | None = None
    """Folder of more tasks, as .yaml files."""
    gen_kwargs: str | None = None
    """Instead of the tasks' generation settings, such as max_gen_toks=64,temperature=0.7."""
    json: Path | None = None
    """File to write the numbers to, by task."""
    device: str = "auto"
    """auto, cpu or cuda; auto takes CUDA where there is one."""
    dtype: Precision = "auto"
    """Arithmetic of matrix products; auto is bfloat16 on CUDA and float32 on the CPU."""
    tokens_per_batch: int | None = None
    """Tokens in one batch; default: 2,048 on the CPU, 16,384 on CUDA."""


def evaluate(arguments: Arguments) -> tuple[RatchetLM, dict[str, Any]]:
    """The model and, on rank 0, what the harness found.

    Raises: ValueError for a task that it does not know.
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
    """Evaluate, print the harness's own table."""
    silence_other_ranks()
    with user_errors():
        arguments = tyro.cli(Arguments)
        if register_model is None:
            raise ValueError(
                "lm-evaluation-harness is not installed; "
                "pip install -c constraints.txt -e '.[lm-eval]'"
            )
        from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

        model, found = evaluate(arguments)
        if model.subject.ranks.is_main:
            log.info("%s", make_table(found))
            if model.truncated:
                log.warning("%d requests lost the beginning of their context", model.truncated)
            if arguments.json is not None:
                write_json(arguments.json, found["results"])
    stop()


if __name__ == "__main__":
    main()
