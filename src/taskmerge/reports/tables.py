"""Reports as tables of text: tasks across, checkpoints down. Pure; how a table is drawn is for `render` to say."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from taskmerge.evaluation.metrics import METRICS, Metric
from taskmerge.evaluation.scores import Average, Report, Row
from taskmerge.evaluation.selection import EXPERT, EXPERTS, average_interval, is_own

T = TypeVar("T")
NOTHING = "–"
AVERAGE, NORMALISED, CLEAN = "average", "normalised", "clean"


@dataclass(frozen=True, slots=True)
class Cell:
    """One number as text. `margin` is the larger half of its 95% interval, `interval` the whole; empty if unknown."""

    text: str
    margin: str = ""
    interval: str = ""

    @property
    def short(self) -> str:
        return f"{self.text} ±{self.margin}" if self.margin else self.text

    @property
    def long(self) -> str:
        return f"{self.text} ({self.interval})" if self.interval else self.text


EMPTY = Cell(NOTHING)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns; `corner` heads the names of the rows, `notes` stand below."""

    title: str
    corner: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def transposed(self, corner: str) -> "Table":
        """Rows as columns and columns as rows."""
        cells = tuple(zip(*self.cells, strict=True))
        return Table(self.title, corner, self.names, self.columns, cells, self.notes)


def tables(report: Report) -> tuple[Table, ...]:
    """Every table that a report has something for, the scores first."""
    every = [scores(report), cross(report), relative(report), corruptions(report), *comparisons(report)]
    every += [*correlations(report), choices(report), checks(report)]
    return tuple(table for table in every if table is not None)


def scores(report: Report) -> Table | None:
    """Clean data, each task by its own head: tasks across, checkpoints down, then the means."""
    rows = [row for row in report.rows if row.corruption is None and is_own(row)]
    if not rows:
        return None
    tasks = _unique(row.task for row in rows)
    by_place = {(_group(row), row.task): row for row in rows}
    means = {mean.encoder: mean for mean in report.averages if mean.corruption is None}
    names = _unique(_group(row) for row in rows)
    columns = [*tasks, *_mean_columns(rows, means.values())]
    cells = tuple(
        tuple(_score_cell(by_place.get((name, task))) for task in tasks)
        + tuple(_mean_cell(means.get(name), column, report) for column in columns[len(tasks) :])
        for name in names
    )
    title = f"{report.suite}, split {report.split}: {_scale(rows)}"
    return Table(title, "checkpoint", tuple(columns), tuple(names), cells, (*_score_notes(rows), *_task_notes(report)))


def cross(report: Report) -> Table | None:
    """Every expert's encoder (down) with every task's head on that task's data (across)."""
    return _cross(report, "encoder of an expert (down) with the head and data of a task (across)", _score_cell)


def relative(report: Report) -> Table | None:
    """The cross matrix relative to its diagonal, in percent."""
    return _cross(report, "the same relative to the task's own expert, in percent", _relative_cell)


def _cross(report: Report, title: str, cell: Callable[[Row | None], Cell]) -> Table | None:
    rows = [row for row in report.rows if row.corruption is None and row.encoder.startswith(EXPERT)]
    if all(is_own(row) for row in rows):
        return None
    encoders, tasks = _unique(row.encoder for row in rows), _unique(row.task for row in rows)
    by_place = {(row.encoder, row.task): row for row in rows}
    cells = tuple(tuple(cell(by_place.get((name, task))) for task in tasks) for name in encoders)
    return Table(title, "encoder", tuple(tasks), tuple(name.removeprefix(EXPERT) for name in encoders), cells)


def corruptions(report: Report) -> Table | None:
    """Means over the tasks on clean and on corrupted pictures, and over the corruptions."""
    kinds = _unique((mean.corruption, mean.severity) for mean in report.averages)
    spoilt = [kind for kind in kinds if kind[0] is not None]
    if not spoilt:
        return None
    by_kind = {(mean.encoder, mean.corruption, mean.severity): mean for mean in report.averages}
    names = [name for name in _unique(mean.encoder for mean in report.averages) if not name.startswith(EXPERT)]
    columns = [f"{name} {severity}" if name else CLEAN for name, severity in kinds]
    cells = []
    for name in names:
        means = [by_kind.get((name, *kind)) for kind in spoilt]
        values = [mean.average for mean in means if mean is not None]
        last = Cell(_percent(fmean(values))) if values else EMPTY
        cells.append((*(_mean_cell(by_kind.get((name, *kind)), AVERAGE, report) for kind in kinds), last))
    title = f"{report.suite}, split {report.split}: average over the tasks by corruption and severity, in percent"
    return Table(title, "checkpoint", (*columns, "corrupted"), tuple(names), tuple(cells))


def comparisons(report: Report) -> list[Table]:
    """Against the experts, a table for each checkpoint: what is lost, gained, and the difference."""
    columns = {"lost": "lost", "gained": "gained", "net": "lost - gained"}
    title = "{}: items lost (expert right, it wrong) and gained (expert wrong, it right), in percent"
    rows = [
        (entry, (*(_share_cell(entry[key]) for key in columns), Cell(f"{entry['n']:,}")))
        for entry in report.comparisons
    ]
    return _by_checkpoint(rows, title, (*columns.values(), "n"))


def correlations(report: Report) -> list[Table]:
    """Spearman's correlation of label-free losses with the true one, a table for each checkpoint."""
    kinds = _unique((entry["loss"], entry["items"]) for entry in report.correlations)
    places = {(*_data_of(entry), entry["loss"], entry["items"]): entry for entry in report.correlations}
    firsts = {_data_of(entry): entry for entry in reversed(report.correlations)}
    rows = [
        (firsts[place], tuple(_correlation_cell(places.get((*place, *kind))) for kind in kinds))
        for place in _unique(map(_data_of, report.correlations))
    ]
    columns = tuple(f"{loss.replace('_', ' ')}, {items}" for loss, items in kinds)
    return _by_checkpoint(rows, "{}: rank correlation of losses without labels with the true one", columns)


def choices(report: Report) -> Table | None:
    """Checkpoints in the order of a criterion that needs no labels, beside others' places and what labels say."""
    if not report.choices:
        return None
    criteria = _unique(choice["criterion"] for choice in report.choices)
    by_place = {(choice["encoder"], choice["criterion"]): choice for choice in report.choices}
    first = [choice for choice in report.choices if choice["criterion"] == criteria[0]]
    ranked = sorted(first, key=lambda choice: choice["rank"])
    means = [key for key in (AVERAGE, NORMALISED) if any(choice.get(key) is not None for choice in ranked)]
    cells = tuple(
        (
            *(_place_cell(by_place.get((choice["encoder"], name))) for name in criteria),
            *(Cell(_percent(choice[key])) if choice.get(key) is not None else EMPTY for key in means),
        )
        for choice in ranked
    )  # fmt: skip
    columns = (*criteria, *means)
    return Table("choice without labels", "checkpoint", columns, tuple(choice["encoder"] for choice in ranked), cells)


def _place_cell(choice: Mapping[str, Any] | None) -> Cell:
    """A criterion's value and the checkpoint's place by it."""
    return EMPTY if choice is None else Cell(f"{choice['value']:.4f} #{choice['rank']}")


def checks(report: Report) -> Table | None:
    """What was checked: found, wanted, and whether it held."""
    if not report.checks:
        return None
    cells = tuple(_check_cells(check) for check in report.checks)
    names = tuple(
        f"{check['checkpoint']}: {check['task'] or check['metric']}{_spoilt(check)}" for check in report.checks
    )
    return Table("checks, as fractions", "what", ("found", "wanted", "difference", "result"), names, cells)


def _check_cells(check: Mapping[str, Any]) -> tuple[Cell, ...]:
    signs = {"fail_under": "≥ ", "fail_over": "≤ ", "baseline": ""}
    difference = EMPTY
    if check["difference"] is not None:
        has_interval = check["low"] is not None
        span = f"{check['low']:+.4f} to {check['high']:+.4f}" if has_interval else ""
        difference = Cell(f"{check['difference']:+.4f}", interval=span)
    wanted = f"{signs[check['kind']]}{check['wanted']:.4f}"
    return Cell(f"{check['found']:.4f}"), Cell(wanted), difference, Cell("passed" if check["passed"] else "FAILED")


def _by_checkpoint(
    entries: Iterable[tuple[Mapping[str, Any], tuple[Cell, ...]]], title: str, columns: tuple[str, ...]
) -> list[Table]:
    """A table for each checkpoint, tasks down."""
    own: dict[str, list[tuple[str, tuple[Cell, ...]]]] = {}
    for entry, cells in entries:
        own.setdefault(entry["encoder"], []).append((f"{entry['task']}{_spoilt(entry)}", cells))
    return [
        Table(title.format(name), "task", columns, tuple(task for task, _ in rows), tuple(cells for _, cells in rows))
        for name, rows in own.items()
    ]


def _mean_columns(rows: Sequence[Row], means: Iterable[Average]) -> list[str]:
    """The means that say something: no plain one of scores and errors together, or over one task."""
    averages = list(means)
    alike = len({(METRICS[row.metric].percent, METRICS[row.metric].lower_is_better) for row in rows}) == 1
    several = len({row.task for row in rows}) > 1
    columns = [AVERAGE] if averages and alike and several else []
    return [*columns, NORMALISED] if any(mean.normalised is not None for mean in averages) else columns


def _scale(rows: Sequence[Row]) -> str:
    """What the numbers are."""
    metrics = _unique(row.metric for row in rows)
    name = metrics[0].replace("_", " ") if len(metrics) == 1 else "scores"
    unit = ", in percent" if any(METRICS[metric].percent for metric in metrics) else ""
    return f"{name}{unit} ± 95% interval"


def _score_notes(rows: Sequence[Row]) -> Iterable[str]:
    """Items, metrics other than the common one, and what adapted checkpoints have seen."""
    sizes = [row.score.n for row in rows]
    few, many = min(sizes), max(sizes)
    yield f"{few:,} item{'' if many == 1 else 's'} a task" if few == many else f"{few:,} to {many:,} items a task"
    tasks: dict[str, list[str]] = {}
    for row in rows:
        tasks.setdefault(row.metric, [])
        if row.task not in tasks[row.metric]:
            tasks[row.metric].append(row.task)
    if len(tasks) > 1:
        yield "; ".join(f"{_described(METRICS[metric])}: {', '.join(names)}" for metric, names in tasks.items())
    for name, protocol in _unique((row.encoder, row.protocol) for row in rows if row.protocol):
        yield f"{name}: {protocol}"


def _task_notes(report: Report) -> Iterable[str]:
    """Which checkpoints are not one model for all tasks."""
    for checkpoint in report.checkpoints:
        if checkpoint.get("needs_task_index"):
            yield f"{checkpoint['name']}: needs to be told which task an item is of"


def _described(metric: Metric) -> str:
    """A metric's name, and what it is where it is no share or correlation."""
    better = "; lower is better" if metric.lower_is_better else ""
    return metric.name if metric.percent and not better else f"{metric.name} ({metric.title}{better})"


def _score_cell(row: Row | None) -> Cell:
    if row is None:
        return EMPTY
    score, metric = row.score, METRICS[row.metric]
    return _cell(score.value, score.low, score.high, _percent if metric.percent else written)


def _relative_cell(row: Row | None) -> Cell:
    return EMPTY if row is None or row.normalised is None else Cell(_percent(row.normalised))


def _mean_cell(mean: Average | None, column: str, report: Report) -> Cell:
    if mean is None or (column == NORMALISED and mean.normalised is None):
        return EMPTY
    if column == NORMALISED and mean.normalised is not None:
        return Cell(_percent(mean.normalised))
    rows = [row for row in report.rows if row.encoder == mean.encoder]
    percent = all(METRICS[row.metric].percent for row in rows)
    return _cell(mean.average, *average_interval(mean, report), _percent if percent else written)


def _share_cell(share: Mapping[str, float]) -> Cell:
    return _cell(share["share"], share["low"], share["high"], _percent)


def _correlation_cell(loss: Mapping[str, Any] | None) -> Cell:
    if loss is None or loss["score"] is None:
        return EMPTY
    if loss.get("low") is None:
        return Cell(f"{loss['score']:z.2f}")
    return _cell(loss["score"], loss["low"], loss["high"], lambda value: f"{value:z.2f}")


def _cell(value: float, low: float, high: float, told: Callable[[float], str]) -> Cell:
    return Cell(told(value), told(max(high - value, value - low, 0.0)), f"{told(low)} to {told(high)}")


def _percent(value: float) -> str:
    return f"{100 * value:z.1f}"


def written(value: float, digits: int = 3) -> str:
    """So many digits, and all of those before the point: 0.0123, 12.3, 1,235."""
    return f"{value:,.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"


def _group(row: Row) -> str:
    """The name under which a row stands: the experts are one line together."""
    return EXPERTS if row.encoder.startswith(EXPERT) else row.encoder


def _data_of(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["encoder"], entry["task"], entry.get("corruption"), entry.get("severity")


def _spoilt(entry: Mapping[str, Any]) -> str:
    return f" ({entry['corruption']} {entry['severity']})" if entry.get("corruption") else ""


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
