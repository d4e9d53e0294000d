"""Documents and tasks that the model cannot answer are left out of the harness's metrics.

The harness has no word for that, and ends all tasks for one ending that is too long:
https://github.com/EleutherAI/lm-evaluation-harness/issues/1297
"""

import logging
import math
from collections.abc import Callable
from functools import wraps
from typing import Any

log = logging.getLogger(__name__)

UNSCORABLE: tuple[float, bool] = (math.nan, False)
"""The answer to a request whose continuation cannot be scored."""


class LeftOut:
    """What is left out, with the reasons."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[Any, str]] = {}
        """By task and number of the document."""
        self.tasks: dict[str, str] = {}
        """Tasks of which nothing can be answered."""
        self._warned: set[str] = set()
        self._unanswered: set[str] = set()
        """Tasks with a document that got no metric."""
        self._answered: set[str] = set()

    def add_document(self, request: Any, reason: str) -> None:
        """Leave out the document of a request."""
        documents = self.documents.setdefault(str(request.task_name), {})
        documents.setdefault(request.doc_id, reason)

    def add_task(self, request: Any, reason: str) -> None:
        """Leave out all documents of a request's task."""
        self.tasks.setdefault(str(request.task_name), reason)

    def warn(self) -> None:
        """Log each task with some documents left out, once."""
        for task, found in self.documents.items():
            if task not in self._warned:
                self._warned.add(task)
                number, reason = next(iter(found.items()))
                log.warning(
                    "%s: %d of its documents left out, such as document %s: %s",
                    *(task, len(found), number, reason),
                )

    def lost_tasks(self) -> dict[str, str]:
        """Tasks that have no number, with the reason: left out, or with all of their documents."""
        lost = dict(self.tasks)
        for task in self.documents.keys() & self._unanswered - self._answered:
            number, reason = min(self.documents[task].items())
            lost.setdefault(task, f"no document can be scored; document {number}: {reason}")
        return lost

    def raise_tasks(self) -> None:
        """Raises: ValueError naming the tasks that have no number, if there are any."""
        if lost := self.lost_tasks():
            raise ValueError("; ".join(f"{task}: {lost[task]}" for task in sorted(lost)))

    def without(self, score: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """The harness's `process_results`, which gives no metric for what is left out."""

        @wraps(score)
        def process_results(task: Any, doc: Any, results: Any) -> dict[str, Any]:
            name = str(task.config.task)
            if name in self.tasks or any(map(_is_unscorable, results)):
                self._unanswered.add(name)
                return {}
            self._answered.add(name)
            return score(task, doc, results)

        return process_results


def _is_unscorable(answer: Any) -> bool:
    return isinstance(answer, tuple) and isinstance(answer[0], float) and math.isnan(answer[0])
