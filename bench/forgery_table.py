"""The table of planted forgeries and audited honest runs, as Markdown."""

from typing import Any


def _shown(problems: list[str] | None) -> str:
    if problems is None:
        return "-"
    return f"{problems[0][:110].replace('|', '/')}" if problems else "**not found**"


def _kind(honest: dict[str, Any]) -> str:
    return honest["name"].rpartition(", seed")[0]


def _row(kind: str, runs: list[dict[str, Any]]) -> str:
    sums = (sum(run[key] for run in runs) for key in ("segments", "exact"))
    accused = sum(bool(run["problems"]) for run in runs)
    return f"| {kind} | {len(runs)} | {' | '.join(map(str, sums))} | {accused} |"


def table_of(forged: list[dict[str, Any]], honest: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    found = sum(bool(f["by_repeating"] or f["chain_again_by_records"]) for f in forged)
    edits = [f for f in forged if "by_records" in f]
    accused = [h for h in honest if h["problems"]]
    segments = sum(h["segments"] for h in honest)
    kinds = dict.fromkeys(_kind(h) for h in honest)
    return "\n".join(
        [
            f"Found: {found} of {len(forged)} forgeries with all digests computed again, when the "
            f"forged segment is repeated; {sum(bool(f['by_records']) for f in edits)} of "
            f"{len(edits)} edits whose digests are left alone, without repeating a step.",
            f"Accused: {len(accused)} of {len(honest)} honest runs ({segments} segments, "
            f"{sum(h['exact'] for h in honest)} of them the same bit for bit).",
            "",
            "| forgery | its digests left alone: what the records show | computed again: what "
            "repeating shows |",
            "| --- | --- | --- |",
            *(
                f"| {f['name']} | {_shown(f.get('by_records'))} | "
                f"{_shown(f['by_repeating'] or f['chain_again_by_records'])} |"
                for f in forged
            ),
            "",
            "| honest runs | number | segments | of them the same bits | accused |",
            "| --- | --: | --: | --: | --: |",
            *(_row(kind, [h for h in honest if _kind(h) == kind]) for kind in kinds),
        ]
    )
