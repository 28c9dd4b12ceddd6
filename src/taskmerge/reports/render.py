"""Reports as text: for a terminal, as Markdown, as CSV, and as result files of CLIP_benchmark. Nothing is printed."""

import csv as comma_separated
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskmerge.errors import plain
from taskmerge.evaluation.metrics import METRICS
from taskmerge.evaluation.scores import Report, Row
from taskmerge.reports.layout import GAP, arranged, column_widths, folded, name_width
from taskmerge.reports.markdown import table as as_markdown
from taskmerge.reports.tables import Cell, Table, tables

if TYPE_CHECKING:
    from rich.console import Console

THEIRS = ("dataset", "model", "pretrained", "task", "language", "model_fullname")
"""The columns of CLIP_benchmark's table, besides its metrics."""
OURS = (
    "checkpoint", "head", "split", "metric", "score", "n", "low", "high", "lower_is_better", "normalised", "skipped",
    "corruption", "severity", "protocol",
)  # fmt: skip


def console(report: Report, *, width: int | None = None, colour: bool | None = None) -> str:
    """The tables for a terminal `width` characters wide; without `width` and `colour`, what stdout is taken for."""
    return drawn(tables(report), width=width, colour=colour)


def drawn(
    tables: Sequence[Table], *, width: int | None = None, colour: bool | None = None, stderr: bool = False
) -> str:
    """Tables for a terminal; without `width` and `colour`, what stdout (or `stderr`) is taken for."""
    from rich.console import Console

    screen = Console(width=width, stderr=stderr)
    styled = colour if colour is not None else screen.is_terminal and not screen.no_color
    text = io.StringIO()
    target = Console(file=text, width=screen.width, force_terminal=styled, no_color=not styled, highlight=False)
    for number, table in enumerate(tables):
        if number:
            target.print()
        _print(table, target)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def markdown(report: Report) -> str:
    """The tables as Markdown, every number with its 95% interval."""
    return "\n".join(map(as_markdown, tables(report)))


def csv(report: Report) -> str:
    """One row a score: the columns of CLIP_benchmark's table, our own, and a column for each metric."""
    rows = [flat(row, report) for row in report.rows]
    present = {name for row in rows for name in row}
    names = [*THEIRS, *OURS, *sorted(present - {*THEIRS, *OURS}, key=_metric_order)]
    text = io.StringIO()
    writer = comma_separated.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def clip_benchmark_files(report: Report) -> dict[str, str]:
    """File name -> content: one JSON document a score, which `clip_benchmark build` makes the rows of `csv` from."""
    files = {}
    for row in report.rows:
        metrics = _metrics(row)
        document = {key: value for key, value in flat(row, report).items() if key not in metrics}
        name = "_".join(str(document[key]) for key in ("dataset", "head", "checkpoint", "corruption", "severity"))
        safe = re.sub(r"[^\w.+-]+", "-", name.removesuffix("_None_None"))
        while f"{safe}.json" in files:  # `a b` and `a:b` are two checkpoints
            safe += "-"
        files[f"{safe}.json"] = json.dumps(document | {"metrics": metrics}, sort_keys=True, ensure_ascii=False) + "\n"
    return files


def flat(row: Row, report: Report) -> dict[str, Any]:
    """A row as one level of plain values. The suite stands for the model, the checkpoint for its weights."""
    kind = METRICS[row.metric].kind
    score = row.score
    return {
        "dataset": row.task,
        "model": report.suite,
        "pretrained": row.encoder,
        "task": "zeroshot_classification" if kind == "classification" else kind,  # what its notebooks look for
        "language": "en",
        "model_fullname": f"{report.suite} {row.encoder}",
        "checkpoint": row.encoder,
        "head": row.head,
        "split": row.split,
        "metric": row.metric,
        "score": float(score.value),
        "n": score.n,
        "low": float(score.low),
        "high": float(score.high),
        "lower_is_better": score.lower_is_better,
        "normalised": row.normalised,
        "skipped": row.skipped,
        "corruption": row.corruption,
        "severity": row.severity,
        "protocol": row.protocol,
        **_metrics(row),
    }


def _metrics(row: Row) -> Mapping[str, float]:
    """The score and what is told beside it, by the names that CLIP_benchmark and lm-evaluation-harness use."""
    values = {name: float(row.score.value) for name in METRICS[row.metric].exports}
    for key, value in row.score.extra.items():
        stem, end = (key[: -len(end)], end) if (end := key[key.rfind("_") :]) in ("_low", "_high") else (key, "")
        names = METRICS[stem].exports if stem in METRICS else (stem,)
        values |= {f"{name}{end}": float(value) for name in names}
    return values


def _metric_order(name: str) -> tuple[int, str]:
    exports = [export for metric in METRICS.values() for export in metric.exports]
    stem = name.removesuffix("_low").removesuffix("_high")
    return (exports.index(stem) if stem in exports else len(exports), name)


def _print(table: Table, target: "Console") -> None:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    for number, part in enumerate(arranged(plainly(table), target.width)):
        if number:
            target.print()
        elif part.title:
            target.print(Text(part.title, style="bold"))
        names, widths = name_width(part, target.width), column_widths(part)
        drawn = Drawn(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
        drawn.add_column(Text(part.corner), width=names)
        for title, needed in zip(part.columns, widths, strict=True):
            drawn.add_column(Text(folded(title, needed)), justify="right", width=needed)
        for name, cells in zip(part.names, part.cells, strict=True):
            drawn.add_row(Text(folded(name, names)), *(Text(cell.short) for cell in cells))
        target.print(drawn)
        for note in part.notes:
            target.print(Text(note, style="dim"))


def plainly(table: Table) -> Table:
    """The table without what a terminal would obey."""
    return Table(
        plain(table.title), plain(table.corner), tuple(map(plain, table.columns)), tuple(map(plain, table.names)),
        tuple(tuple(Cell(*map(plain, (cell.text, cell.margin, cell.interval))) for cell in row) for row in table.cells),
        tuple(map(plain, table.notes)),
    )  # fmt: skip
