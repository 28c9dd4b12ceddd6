"""Plots of an evaluation's scores: means with intervals, scores by task, and scores relative to the experts'."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from taskmerge.evaluation.metrics import METRICS, Metric
from taskmerge.evaluation.results import from_json
from taskmerge.evaluation.scores import Report, Row
from taskmerge.evaluation.selection import EXPERT, EXPERTS, is_own
from taskmerge.reports.charting import SHAPES, WIDTH, data, listed_values, percent, shown_names, spec_of
from taskmerge.reports.charting import Row as Values
from taskmerge.reports.figures import Figure
from taskmerge.reports.standings import Standing, Standings, standings

MODELS = 6
"""Checkpoints in a plot of tasks, besides base and experts; more of them would hide each other."""
ROW = 13
"""Pixels of a mark in a row of several."""
INTERVALS = "lines are 95% intervals (Wilson's for shares of items, the bootstrap's for other metrics)"


def eval_figures(document: Mapping[str, Any]) -> list[Figure]:
    """The plots of scores in a report.json of `taskmerge eval`."""
    return score_figures(from_json(document))


def score_figures(report: Report) -> list[Figure]:
    """The plots of scores that an evaluation has something for: own heads, data as it is."""
    found = standings(report)
    chosen = _chosen(report, found)
    rows = [row for row in report.rows if row.corruption is None and is_own(row) and _group(row) in chosen]
    metrics = list(dict.fromkeys(row.metric for row in rows))
    shares = [row for row in rows if METRICS[row.metric].percent and not METRICS[row.metric].lower_is_better]
    errors = [[row for row in rows if row.metric == name] for name in metrics if not _is_share(METRICS[name])]
    figures = [_means(found), _by_task(shares, chosen, found, "scores")]
    figures += [_by_task(own, chosen, found, f"scores-{own[0].metric}") for own in errors]
    figures.append(_relative(rows, chosen, found))
    return [figure for figure in figures if figure is not None]


def _is_share(metric: Metric) -> bool:
    return metric.percent and not metric.lower_is_better


def _chosen(report: Report, found: Standings) -> list[str]:
    """Which checkpoints are drawn by task: the experts, the base, and the best models in the report's order, so that
    each has its colour in every plot."""
    references = sorted((own.name for own in found.references), key=lambda name: name != EXPERTS)
    best = {own.name for own in found.models[:MODELS]}
    return [*references, *(name for name in dict.fromkeys(row.encoder for row in report.rows) if name in best)]


def _group(row: Row) -> str:
    return EXPERTS if row.encoder.startswith(EXPERT) else row.encoder


def _left_out(found: Standings) -> str:
    more = len(found.models) - MODELS
    return f" The {MODELS} best of {len(found.models)} checkpoints are drawn; the table has all." if more > 0 else ""


# --- means -----------------------------------------------------------------------------------------------------


def _means(found: Standings) -> Figure | None:
    """A row a checkpoint: its mean over the tasks and the interval; None without a common unit or a second one."""
    every = [own for own in (*found.models, *found.references) if own.value is not None]
    if len(every) < 2:
        return None
    every.sort(key=lambda own: own.value or 0.0, reverse=not found.lower_is_better)
    scale = 100 if found.percent else 1
    names = shown_names(own.name for own in every)
    rows = [
        {
            "checkpoint": names[own.name], "mean": scale * (own.value or 0.0), "low": scale * own.low,
            "high": scale * own.high, "tasks": own.tasks, "n": own.n,
            "kind": "reference" if own in found.references else "model",
        }
        for own in every
    ]  # fmt: skip
    title = f"mean over the tasks{' (%)' if found.percent else ''}"
    base = alt.Chart(data(rows)).encode(y=alt.Y("checkpoint:N", sort=list(names.values()), title=None))
    lines = base.mark_rule(aria=False).encode(x=alt.X("low:Q", title=title, scale=alt.Scale(zero=False)), x2="high:Q")
    marks = base.mark_point(size=80).encode(
        x=alt.X("mean:Q", title=title),
        shape=alt.Shape("kind:N", title=None, scale=alt.Scale(domain=["model", "reference"], range=list(SHAPES[:2]))),
        color=alt.Color("kind:N", title=None, scale=alt.Scale(domain=["model", "reference"])),
        tooltip=[
            alt.Tooltip("checkpoint:N", title="checkpoint"), alt.Tooltip("mean:Q", title=title),
            alt.Tooltip("low:Q", title="from"), alt.Tooltip("high:Q", title="to"),
            alt.Tooltip("tasks:Q", title="tasks"), alt.Tooltip("n:Q", title="items", format=","),
        ],
    )  # fmt: skip
    told = [(own.name, _told(own, found)) for own in every]
    return Figure(
        name="means",
        title="Mean over the tasks",
        caption=f"{title[0].upper()}{title[1:]} of each checkpoint, {every[0].tasks} tasks, {every[0].n:,} items; "
        "lines are 95% intervals of the mean. Base and experts are there to compare with.",
        alternative=f"Means, {'lowest' if found.lower_is_better else 'highest'} first: {listed_values(told)}.",
        spec=spec_of(alt.layer(lines, marks).properties(width=WIDTH, height=max(60, 26 * len(rows)))),
    )


def _told(own: Standing, found: Standings) -> str:
    written = percent if found.percent else lambda value: f"{value:.3g}"
    return f"{written(own.value or 0.0)} ({written(own.low)} to {written(own.high)})"


# --- by task ---------------------------------------------------------------------------------------------------


def _by_task(rows: Sequence[Row], chosen: Sequence[str], found: Standings, name: str) -> Figure | None:
    """A row a task, a mark with its interval for each checkpoint."""
    if not rows:
        return None
    share = _is_share(METRICS[rows[0].metric])
    scale = 100 if share else 1
    names, tasks = shown_names(chosen), shown_names(dict.fromkeys(row.task for row in rows))
    values: list[Values] = [
        {
            "task": tasks[row.task], "checkpoint": names[_group(row)], "score": scale * row.score.value,
            "low": scale * row.score.low, "high": scale * row.score.high, "n": row.score.n,
            "metric": row.metric.replace("_", " "),
        }
        for row in rows
    ]  # fmt: skip
    metrics = sorted({str(value["metric"]) for value in values})
    unit = " (%)" if share else f" ({METRICS[rows[0].metric].title})"
    title = f"{metrics[0] if len(metrics) == 1 else 'score'}{unit}"
    sizes = sorted({row.score.n for row in rows})
    items = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    told = [(f"{task}:", _task_told(rows, task, names, scale)) for task in tasks]
    better = " Lower is better." if rows[0].score.lower_is_better else ""
    metric = f" Metrics: {', '.join(metrics)}." if len(metrics) > 1 else ""
    return Figure(
        name=name,
        title="Scores by task",
        caption=f"{title} of each checkpoint on each task's own data, {items} items a task; {INTERVALS}."
        f"{better}{metric}{_left_out(found)}",
        alternative=listed_values(told),
        spec=_dots(values, list(tasks.values()), [names[one] for one in chosen], title),
    )


def _task_told(rows: Sequence[Row], task: str, names: Mapping[str, str], scale: float) -> str:
    own = [row for row in rows if row.task == task]
    return ", ".join(f"{names[_group(row)]} {scale * row.score.value:.4g}" for row in own)


def _dots(values: Sequence[Values], tasks: Sequence[str], names: Sequence[str], title: str) -> Mapping[str, object]:
    """Tasks down, one line of marks for each checkpoint in each."""
    order = alt.Scale(domain=list(names))
    base = alt.Chart(data(values)).encode(
        y=alt.Y("task:N", sort=list(tasks), title=None, axis=alt.Axis(grid=True, tickBand="extent")),
        yOffset=alt.YOffset("checkpoint:N", sort=list(names)),
        color=alt.Color("checkpoint:N", title="checkpoint", scale=order, sort=list(names)),
    )
    lines = base.mark_rule(strokeWidth=1.5, aria=False).encode(
        x=alt.X("low:Q", title=title, scale=alt.Scale(zero=False)), x2="high:Q"
    )
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(names))]
    marks = base.mark_point().encode(
        x=alt.X("score:Q", title=title),
        shape=alt.Shape("checkpoint:N", title="checkpoint", scale=alt.Scale(domain=list(names), range=shapes)),
        tooltip=[
            alt.Tooltip("task:N", title="task"), alt.Tooltip("checkpoint:N", title="checkpoint"),
            alt.Tooltip("score:Q", title=title), alt.Tooltip("low:Q", title="from"),
            alt.Tooltip("high:Q", title="to"), alt.Tooltip("n:Q", title="items", format=","),
        ],
    )  # fmt: skip
    height = max(60, len(tasks) * (ROW * len(names) + 6))
    return spec_of(alt.layer(lines, marks).properties(width=WIDTH, height=height))


# --- relative to the experts -----------------------------------------------------------------------------------


def _relative(rows: Sequence[Row], chosen: Sequence[str], found: Standings) -> Figure | None:
    """A row a task, a mark for each checkpoint at its share of what the task's own expert reaches."""
    scored = [row for row in rows if row.normalised is not None and not row.encoder.startswith(EXPERT)]
    drawn = [name for name in chosen if any(row.encoder == name for row in scored)]
    if not drawn:
        return None
    names, tasks = shown_names(chosen), shown_names(dict.fromkeys(row.task for row in scored))
    title = "share of the expert's score (%)"
    values = [
        {"task": tasks[row.task], "checkpoint": names[row.encoder], "share": 100 * (row.normalised or 0.0)}
        for row in scored
    ]
    legend = alt.Legend(values=[names[name] for name in drawn])
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(chosen))]  # as in the other plots
    marks = alt.Chart(data(values)).mark_point().encode(
        x=alt.X("share:Q", title=title, scale=alt.Scale(zero=False)),
        y=alt.Y("task:N", sort=list(tasks.values()), title=None),
        color=alt.Color("checkpoint:N", title="checkpoint", legend=legend,
                        scale=alt.Scale(domain=list(names.values()))),
        shape=alt.Shape("checkpoint:N", title="checkpoint", legend=legend,
                        scale=alt.Scale(domain=list(names.values()), range=shapes)),
        tooltip=[alt.Tooltip("task:N", title="task"), alt.Tooltip("checkpoint:N", title="checkpoint"),
                 alt.Tooltip("share:Q", title=title)],
    )  # fmt: skip
    whole = alt.Chart().mark_rule(strokeDash=[4, 3], aria=False).encode(x=alt.datum(100))
    shares = {name: [row.normalised or 0.0 for row in scored if row.encoder == name] for name in drawn}
    told = [(names[name], f"{percent(min(own))} to {percent(max(own))}") for name, own in shares.items()]
    return Figure(
        name="normalised",
        title="How much of each expert is kept",
        caption=f"Each checkpoint's score as a share of what the task's own expert scores (dashed line: 100%), "
        f"{len(tasks)} tasks; shares of two estimates, drawn without intervals.{_left_out(found)}",
        alternative=f"Shares of the expert's score, from the worst task to the best: {listed_values(told)}.",
        spec=spec_of(alt.layer(whole, marks, data=data(values)).properties(
            width=WIDTH, height=max(60, 26 * len(tasks)))),
    )  # fmt: skip
