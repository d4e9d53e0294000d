"""Whether the losses of runs compare: validated on the same text, trained on as much of it."""

import math
from collections.abc import Sequence
from pathlib import Path

from data_prep.dataset.manifest import Manifest, read_manifest
from train.reporting.run_summary import RunSummary

NATS, _BITS = "nats per token", "bits per byte"
_ALIKE = 0.01  # by how much the bytes may differ that two tokenizers make of whole windows


def unit_of(runs: Sequence[RunSummary]) -> tuple[str, list[str]]:
    """The unit in which the losses of these runs compare, and what to say of it.

    Raises: ValueError if there is none, because they were validated on different text.
    """
    first = runs[0]
    notes = []
    if len({bool(run.settings.get("mask_documents")) for run in runs}) > 1:
        notes = [
            "some runs were validated within documents (--mask-documents), the others across them: "
            "the same targets after different contexts"
        ]
    other = next((run for run in runs if run.validation != first.validation), None)
    if other is None:
        return NATS, notes
    why = _other_text(first, other)
    if why:
        raise ValueError(
            f"{first.path} and {other.path} were validated on different text ({why}); train both "
            "on one data set, with the same --eval.val-tokens"
        )
    return _BITS, [
        *notes,
        f"validated on the same text in other tokens ({first.val_tokens} and {other.val_tokens}), "
        "so the losses are in bits per byte",
    ]


def check_same_horizon(a: RunSummary, b: RunSummary, unit: str) -> None:
    """Raises: ValueError if one run is planned to train on more text than the other."""
    planned = [run.steps * run.batch_tokens for run in (a, b)]
    if unit == NATS and a.data_fingerprint == b.data_fingerprint:
        same, what = planned[0] == planned[1], "tokens"
        shown = [f"{count:,}" for count in planned]
    else:
        bytes_read = [
            count * _bytes_of_token(read_manifest(Path(run.data)))
            for count, run in zip(planned, (a, b), strict=True)
        ]
        same, what = _are_alike(*bytes_read), "bytes of text"
        shown = [f"{count:,.0f}" for count in bytes_read]
    if not same:
        raise ValueError(
            f"A trains on {shown[0]} {what} in all ({a.steps} steps of {a.batch_tokens}), B on "
            f"{shown[1]} ({b.steps} of {b.batch_tokens}); give both the same horizon, with --steps "
            "and --batch-tokens"
        )


def _other_text(a: RunSummary, b: RunSummary) -> str:
    """Why bits per byte do not compare either; empty if they do."""
    if a.data_fingerprint == b.data_fingerprint:
        tokens = f"{a.val_tokens} and {b.val_tokens} tokens of {a.data}"
        return "" if _same_bytes(a, b) else tokens
    identities = " and ".join(f"{run.data}, {run.data_fingerprint[:16]}" for run in (a, b))
    try:
        one, two = (read_manifest(Path(run.data)) for run in (a, b))
    except (ValueError, OSError) as error:
        return f"{identities}; that their text is the same cannot be seen: {error}"
    if [one.fingerprint, two.fingerprint] != [a.data_fingerprint, b.data_fingerprint]:
        return f"{identities}; these folders hold other data now"
    if (one.source.files, one.split_rule) != (two.source.files, two.split_rule):
        return identities
    return "" if _same_bytes(a, b) else f"{identities}: other parts of the same text"


def _same_bytes(a: RunSummary, b: RunSummary) -> bool:
    """Whether both validations are of about as many bytes, from the start of the same text."""
    lengths = [_validated_bytes(run) for run in (a, b)]
    return None not in lengths and _are_alike(*(length or 0.0 for length in lengths))


def _validated_bytes(run: RunSummary) -> float | None:
    """The bytes of the validation text: the loss per token is bits per byte times these."""
    if not run.val_tokens or not run.last_val_loss or not run.last_bits_per_byte:
        return None
    return run.val_tokens * run.last_val_loss / (math.log(2) * run.last_bits_per_byte)


def _bytes_of_token(manifest: Manifest) -> float:
    return manifest.train.text_bytes / max(1, manifest.train.tokens)


def _are_alike(one: float, two: float) -> bool:
    return abs(one - two) <= _ALIKE * max(one, two)
