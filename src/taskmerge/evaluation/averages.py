"""Scores relative to the experts', and means over tasks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from taskmerge.evaluation.scores import Average, Row, Score


def normalised(rows: Iterable[Row]) -> list[Row]:
    """Rows with their score relative to that of the task's own expert on the same (clean or corrupted) data.

    Score / expert's, for errors expert's / score. None where the expert was not evaluated or the ratio says nothing
    (the denominator is not positive).
    """
    rows = list(rows)
    experts = {_data(row): row.score for row in rows if row.encoder == f"expert:{row.task}"}
    return [replace(row, normalised=_ratio(row.score, experts.get(_data(row)))) for row in rows]


def averages(rows: Sequence[Row], groups: Mapping[str, str]) -> tuple[Average, ...]:
    """The means of every checkpoint over its tasks, for each corruption; `groups` names the argument of each row.

    The experts have one mean together, each over its own task; and, where they were scored on all tasks, each its own.
    """
    members: dict[tuple[str, str | None, int | None], list[Row]] = {}
    for row in rows:
        if groups[row.encoder] == row.encoder:
            members.setdefault((row.encoder, row.corruption, row.severity), []).append(row)
        elif row.encoder == f"expert:{row.task}":
            members.setdefault((groups[row.encoder], row.corruption, row.severity), []).append(row)
    crossed = {
        row.encoder for row in rows if row.encoder not in groups.values() and row.encoder != f"expert:{row.task}"
    }
    for row in rows:
        if row.encoder in crossed:
            members.setdefault((row.encoder, row.corruption, row.severity), []).append(row)
    return tuple(_average(key, own) for key, own in members.items())


def _data(row: Row) -> tuple[str, str | None, int | None]:
    return row.task, row.corruption, row.severity


def _ratio(score: Score, expert: Score | None) -> float | None:
    if expert is None:
        return None
    above, below = (expert, score) if score.lower_is_better else (score, expert)
    return above.value / below.value if below.value > 0 else None


def _average(key: tuple[str, str | None, int | None], rows: Sequence[Row]) -> Average:
    encoder, corruption, severity = key
    relative = [row.normalised for row in rows if row.normalised is not None]
    mean = fmean(relative) if len(relative) == len(rows) else None
    return Average(encoder, fmean(row.score.value for row in rows), mean, corruption, severity)
