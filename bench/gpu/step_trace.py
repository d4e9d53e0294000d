"""Where a GPU's time goes in a profiler trace of whole steps: kernels by kind, and gaps."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# The first pattern that a kernel's name contains decides. Names of cuBLAS (nvjet, gemm), cuDNN
# (sdpa), FlashAttention, Inductor (triton_, then what it fused) and torch's own kernels.
_KINDS = {
    "attention": r"sdpa|flash|fmha|attention",
    "loss": r"softmax_minus_one_hot|log_softmax|nll_loss|cross_entropy|logsumexp",
    "matrix products": r"nvjet|gemm|xmma|cutlass|cublas|wgmma",
    "update": r"adam|multi_tensor|lpnorm|foreach",
    "fused element-wise": r"^triton_",
    "copies": r"memcpy|memset|copy",
}
_OTHER = "other kernels"
_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_MOST_KERNELS = 12  # that are listed by name
_LONGEST_NAME = 80


def milliseconds_of_a_step(trace: Path, steps: int) -> dict[str, Any]:
    """Milliseconds of a step by kind of kernel, without any, and of the costliest kernels.

    `trace` covers `steps` steps. Kernels that run at the same time count twice, but in the gaps.
    Raises: ValueError if the file holds no kernel, as a trace of the CPU does.
    """
    with gzip.open(trace, "rt", encoding="utf-8", errors="replace") as file:
        events = json.load(file)["traceEvents"]
    spans = [
        (event["name"], float(event["ts"]), float(event["dur"]))
        for event in events
        if event.get("ph") == "X" and event.get("cat") in _ON_DEVICE
    ]
    if not spans:
        raise ValueError(f"{trace.name} holds no kernel of a GPU")
    kinds: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    for name, _, microseconds in spans:
        kinds[_kind(name)] += microseconds  # type: ignore[assignment]
        kernels[name[:_LONGEST_NAME]] += microseconds  # type: ignore[assignment]
    gaps = _gaps((begin, begin + length) for _, begin, length in spans)
    per_step = 1000 * steps
    return {
        "by_kind_ms": {kind: time / per_step for kind, time in kinds.most_common()},
        "gaps_ms": gaps / per_step,
        "kernels_ms": {n: time / per_step for n, time in kernels.most_common(_MOST_KERNELS)},
    }


def _kind(name: str) -> str:
    found = (kind for kind, pattern in _KINDS.items() if re.search(pattern, name, re.IGNORECASE))
    return next(found, _OTHER)


def _gaps(spans: Iterable[tuple[float, float]]) -> float:
    """The time between the first begin and the last end in which nothing runs."""
    idle, until = 0.0, None
    for begin, end in sorted(spans):
        if until is not None and begin > until:
            idle += begin - until
        until = end if until is None else max(until, end)
    return idle
