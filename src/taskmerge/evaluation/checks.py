"""The checks of a report, against thresholds and a baseline, and what is said of those that fail."""

from collections.abc import Iterable, Mapping
from typing import Any

from taskmerge.errors import Missed
from taskmerge.evaluation.baseline import against_baseline
from taskmerge.evaluation.thresholds import NORMALISED, Threshold, against_thresholds, thresholds

__all__ = ["NORMALISED", "Threshold", "against_baseline", "against_thresholds", "missed", "thresholds", "told"]


def missed(records: Iterable[Mapping[str, Any]]) -> Missed | None:
    """The error that says what fell short, or None if everything passed."""
    records = list(records)
    failed = [one for one in records if not one["passed"]]
    if not failed:
        return None
    lines = "\n".join(f"  {told(one)}" for one in failed)
    return Missed(f"{len(failed)} of {len(records)} checks failed\n{lines}")


def told(record: Mapping[str, Any]) -> str:
    """One check in words: `merged: mnist 0.871, wanted at least 0.9 (95% interval 0.849 to 0.890)`."""
    what = record["task"] or record["metric"]
    where = f" on {record['corruption']} {record['severity']}" if record["corruption"] else ""
    known = record["low"] is not None
    if record["kind"] == "baseline":
        span = f"; 95% interval {record['low']:+.4f} to {record['high']:+.4f}" if known else ""
        return (
            f"{record['checkpoint']}: {what}{where} {record['found']:.4f}, baseline {record['wanted']:.4f} "
            f"({record['difference']:+.4f}{span}; tolerance {record['tolerance']:g})"
        )
    side = "at least" if record["kind"] == "fail_under" else "at most"
    span = f" (95% interval {record['low']:.4f} to {record['high']:.4f})" if known else ""
    return f"{record['checkpoint']}: {what}{where} {record['found']:.4f}, wanted {side} {record['wanted']:g}{span}"
