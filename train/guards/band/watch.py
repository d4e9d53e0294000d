"""A run in progress beside its band: compared at marked steps, as their lines are written.

Only rank 0 has a band. Nothing here decides anything: a failure is reported once, and the run is
then no longer compared.
"""

import logging
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from storage.json_lines import read_metrics
from storage.metrics import Metrics
from train.guards.band.judgement import BandJudge, MarkResult
from train.guards.band.marks import GRAD_NORM, HELD_OUT_LOSS, TRAIN_LOSS
from train.guards.band.recipe import RunFacts, find_band
from train.guards.band.record import Band
from train.guards.band.wording import outside_text, rows_of, within_text

_TAGS = {TRAIN_LOSS: "loss", GRAD_NORM: "grad_norm", HELD_OUT_LOSS: "val_loss"}
_SHOWN_PARTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # of the run: the marks that get a line
log = logging.getLogger(__name__)


class BandWatch:
    """What a run does with its band: keys for its metric lines, lines in its log, a last verdict.

    Without a band all of it is empty.
    """

    def __init__(self, judge: BandJudge | None = None, val_tokens: int | None = None) -> None:
        """`val_tokens`: those of the run; of other validations the losses are not compared."""
        self.judge = judge
        self._same_validation = judge is not None and judge.band.val_tokens == val_tokens
        self._warned = False

    @property
    def band(self) -> Band | None:
        """The band, if the run has one."""
        return None if self.judge is None else self.judge.band

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Judge the steps before a resume, without a word."""
        for line in lines:
            self._judged(line["step"], line)
        self._warned = self.judge is not None and any(r.outside for r in self.judge.results)

    def compare(self, step: int, metrics: Metrics) -> Metrics:
        """Judge the metric line of a step; returns what is added to it."""
        result = self._judged(step, metrics)
        if result is None or self.judge is None:
            return {}
        try:
            self._report(self.judge, result)
            found: Metrics = {f"band/{_TAGS[c.figure]}_z": c.z for c in result.comparisons}
            return found | {"band/outside": int(result.outside)} if found else {}
        except Exception as error:
            self._give_up(error)
            return {}

    def rows(self) -> list[tuple[str, str]]:
        """Rows of the closing table on all marks so far; none without a band."""
        if self.judge is None:
            return []
        try:
            return rows_of(self.judge)
        except Exception as error:
            self._give_up(error)
            return []

    def _judged(self, step: int, line: Mapping[str, Any]) -> MarkResult | None:
        if self.judge is None:
            return None
        try:
            if not self._same_validation:
                line = {tag: value for tag, value in line.items() if tag != HELD_OUT_LOSS}
            return self.judge.add(step, line)
        except Exception as error:
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        """Whatever it is, it is no reason to end a run."""
        log.error(
            "the run is no longer compared with its band (%s: %s); training continues",
            type(error).__name__,
            error,
        )
        self.judge = None

    def _report(self, judge: BandJudge, result: MarkResult) -> None:
        """Log a mark that is shown, and the first one outside."""
        shown = {round(judge.band.steps * part) for part in _SHOWN_PARTS}
        if result.outside and (not self._warned or result.mark in shown):
            self._warned = True
            log.warning("%s", outside_text(judge, result))
        elif result.mark in shown and result.comparisons:
            log.info("%s", within_text(judge, result))


def band_watch(wanted: str | Path, facts: RunFacts, metrics: Path) -> BandWatch:
    """The watch of a run with the setting `guard.band`; `metrics` has its lines so far."""
    try:
        band = find_band(wanted, facts)
        if band is None:
            return BandWatch()
        import_module("scipy.special")  # 0.2 seconds, which the first step would wait for
        judge = BandJudge(band, facts.seed, facts.made)
        watch = BandWatch(judge, facts.val_tokens)
        watch.replay(read_metrics(metrics))
    except Exception as error:
        log.error("no band is used (%s); training continues", error)
        return BandWatch()
    parts = [f"{band.name}, {len(band.seeds)} seeds"]
    if judge.paired:
        parts.append(f"should repeat its run of seed {facts.seed} but for rounding")
    if band.val_tokens != facts.val_tokens:
        parts.append(f"validated on {band.val_tokens:,} tokens there: not compared")
    log.info("  band       %s", "; ".join(parts))
    return watch
