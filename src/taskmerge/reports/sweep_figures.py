"""Plots of sweeps: scores over rank and coefficient, routing, subsets, pairs; loss_figures.py has those of losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from taskmerge.reports.charting import STROKES, WIDTH, dashed, data, data_of, listed_values, shown_names, spec_of
from taskmerge.reports.figures import Figure
from taskmerge.reports.loss_figures import components, landscape
from taskmerge.reports.sweep_tables import NAMES, plain_in, scale_in, score_of, unit_of

Document = Mapping[str, Any]
HEIGHT = 280
NAMED = 13.0
"""Pixels that a label is high."""
INTERVALS = "bands are 95% intervals of the mean over tasks"


def sweep_figures(report: Mapping[str, Any]) -> list[Figure]:
    """The plots of the part `sweeps` of a report (or of that part alone): those that it has something for."""
    sweeps = report.get("sweeps", report)
    makers = {
        "rank": _rank, "coefficient": _coefficient, "routing": _routing, "subsets": _subsets,
        "components": components, "landscape": landscape, "pairs": _pairs,
    }  # fmt: skip
    return [figure for kind, make in makers.items() if kind in sweeps for figure in make(sweeps)]


# --- scores over a grid ----------------------------------------------------------------------------------------


def _rank(sweeps: Document) -> list[Figure]:
    points = sweeps["rank"]["points"]
    rows = [
        {"x": float(point["rank"]), "series": NAMES[point["method"]], "direction": point["direction"],
         **_scored(point, sweeps)}
        for point in points
    ]  # fmt: skip
    what = _share_or_count(points)
    best = _best(rows)
    return [Figure(
        name="sweep-rank",
        title="Score over rank",
        caption=f"Mean over {data_of(sweeps)}, over the {what} that is kept of every matrix; solid lines keep the "
        f"leading components, dashed ones as many of the lowest; {INTERVALS}. Rules are the experts, the average and "
        "the base. Nothing here was chosen without these labels.",
        alternative=f"Highest: {best}.",
        spec=_lines(rows, sweeps, what, log=True, direction=True),
    )]  # fmt: skip


def _coefficient(sweeps: Document) -> list[Figure]:
    rows = [
        {"x": point["coefficient"], "series": NAMES[point["method"]], "direction": "proper", **_scored(point, sweeps)}
        for point in sweeps["coefficient"]["points"]
    ]
    ranks = {point["rank"] for point in sweeps["coefficient"]["points"] if point["method"] != "task_arithmetic"}
    return [Figure(
        name="sweep-coefficient",
        title="Score over the coefficient",
        caption=f"Mean over {data_of(sweeps)}, over the coefficient λ; truncated methods keep "
        f"{', '.join(sorted(ranks))} of the full rank; {INTERVALS}.",
        alternative=f"Highest: {_best(rows)}.",
        spec=_lines(rows, sweeps, "coefficient λ", log=False, direction=False),
    )]  # fmt: skip


def _routing(sweeps: Document) -> list[Figure]:
    points = sweeps["routing"]["points"]
    rows = [
        {"x": float(point["rank"]), "series": f"from the {point['origin']}", "direction": "proper",
         **_scored(point, sweeps)}
        for point in points
    ]  # fmt: skip
    what = _share_or_count(points)
    return [Figure(
        name="sweep-routing",
        title="Direct routing over rank",
        caption=f"Mean over {data_of(sweeps)}: each task is served by a model of its own, the average or the base and "
        f"its truncated task vector, over the {what} kept of it; {INTERVALS}. At full rank these are the experts.",
        alternative=f"Highest: {_best(rows)}.",
        spec=_lines(rows, sweeps, what, log=True, direction=False),
    )]  # fmt: skip


def _share_or_count(points: Sequence[Document]) -> str:
    counts = all(str(point["rank"]).isdigit() for point in points)
    return "number of components" if counts else "share of the full rank"


def _scored(point: Document, sweeps: Document) -> dict[str, float | None]:
    """The mean of a point, in percent where it is a share; its interval where it has one."""
    (value, low, high), scale = score_of(point), scale_in(sweeps)
    return {"score": scale * value if value is not None else None,
            "low": None if low is None else scale * low, "high": None if high is None else scale * high}  # fmt: skip


def _best(rows: Sequence[Mapping[str, Any]]) -> str:
    """The highest point of every line, in words."""
    lines: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        name = row["series"] if row["direction"] == "proper" else f"{row['series']} reversed"
        if row["score"] is not None and (name not in lines or row["score"] > lines[name]["score"]):
            lines[name] = row
    told = [(name, f"{row['score']:.1f} at {row['x']:g}") for name, row in lines.items()]
    return listed_values(told) or "nothing, no point has a score"


def _lines(
    rows: Sequence[Mapping[str, Any]], sweeps: Document, across: str, *, log: bool, direction: bool
) -> Mapping[str, object]:
    """Lines with bands over a grid, and rules for what they are compared with."""
    title = _title(sweeps)
    base = alt.Chart(data(rows)).encode(
        x=alt.X("x:Q", title=across, scale=alt.Scale(type="log" if log else "linear", nice=False)),
        color=alt.Color("series:N", title=None, legend=STROKES),
    )
    dash = dashed("direction", ["proper", "reversed"])
    more = {"strokeDash": dash} if direction else {}
    band = base.mark_area(opacity=0.15).encode(
        y="low:Q", y2="high:Q", **({"detail": "direction:N"} if direction else {})
    )
    tooltip = [
        alt.Tooltip("series:N", title="model"), *([alt.Tooltip("direction:N")] if direction else []),
        alt.Tooltip("x:Q", title=across), alt.Tooltip("score:Q", title=title),
        alt.Tooltip("low:Q", title="from"), alt.Tooltip("high:Q", title="to"),
    ]  # fmt: skip
    line = base.mark_line(point=True).encode(
        y=alt.Y("score:Q", title=title, scale=alt.Scale(zero=False)), tooltip=tooltip, **more
    )
    return spec_of(alt.layer(*_rules(rows, sweeps, title), band, line).properties(width=WIDTH, height=HEIGHT))


def _title(sweeps: Document) -> str:
    """What the mean is called."""
    if not plain_in(sweeps):
        return "mean score relative to the experts' (%)"
    return f"mean over the tasks{' (%)' if unit_of(sweeps) else ''}"


def _rules(rows: Sequence[Mapping[str, Any]], sweeps: Document, title: str) -> list[alt.Chart]:
    """A line for each reference that has a mean, its name at its end; names that would stand on each other are one."""
    marks: list[dict[str, Any]] = []
    for name in ("experts", "average", "base"):
        value = _scored(sweeps["references"][name], sweeps)["score"] if name in sweeps["references"] else None
        if value is not None:
            marks.append({"reference": name, "score": value})
    if not marks:
        return []
    every = [row[key] for row in (*rows, *marks) for key in ("score", "low", "high") if row.get(key) is not None]
    room = NAMED * (max(every) - min(every)) / HEIGHT
    names: list[dict[str, Any]] = []
    for mark in sorted(marks, key=lambda mark: -mark["score"]):
        if names and names[-1]["score"] - mark["score"] <= room:
            names[-1]["reference"] += f", {mark['reference']}"
        else:
            names.append(dict(mark))
    where = alt.Y("score:Q", title=title)
    rule = alt.Chart(data(marks)).mark_rule(strokeDash=[2, 2], opacity=0.7).encode(y=where)
    text = (
        alt.Chart(data(names))
        .mark_text(align="right", baseline="bottom", dx=-2)
        .encode(y=where, x=alt.value(WIDTH), text="reference:N")
    )
    return [rule, text]


# --- subsets and pairs -----------------------------------------------------------------------------------------


def _subsets(sweeps: Document) -> list[Figure]:
    key, scale = "average" if plain_in(sweeps) else "normalised", scale_in(sweeps)
    rows = [
        {
            "tasks": size["tasks"], "series": NAMES[size["method"]], "subsets": size["subsets"],
            "score": scale * size[key]["mean"], "low": scale * (size[key]["mean"] - (size[key]["se"] or 0)),
            "high": scale * (size[key]["mean"] + (size[key]["se"] or 0)),
        }
        for size in sweeps["subsets"]["sizes"] if size[key] is not None
    ]  # fmt: skip
    title = _title(sweeps)
    base = alt.Chart(data(rows)).encode(
        x=alt.X(
            "tasks:Q",
            title="tasks that are merged",
            axis=alt.Axis(tickMinStep=1, format="d"),
            scale=alt.Scale(zero=False, nice=False, padding=12),
        ),
        color=alt.Color("series:N", title=None, legend=STROKES),
    )
    tooltip = [alt.Tooltip("series:N", title="model"), alt.Tooltip("tasks:Q"), alt.Tooltip("subsets:Q"),
               alt.Tooltip("score:Q", title=title), alt.Tooltip("low:Q", title="mean - se"),
               alt.Tooltip("high:Q", title="mean + se")]  # fmt: skip
    line = base.mark_line(point=True).encode(
        y=alt.Y("score:Q", title=title, scale=alt.Scale(zero=False)), tooltip=tooltip
    )
    bars = base.mark_rule().encode(y="low:Q", y2="high:Q")
    last = [row for row in rows if row["tasks"] == max(own["tasks"] for own in rows)]
    return [Figure(
        name="sweep-subsets",
        title="Score over the number of merged tasks",
        caption=f"Every subset of {data_of(sweeps)} is merged and scored on its own tasks; lines are means over the "
        "subsets of a size, bars one standard error over them on either side.",
        alternative=f"With all tasks: {listed_values(_told(last))}.",
        spec=spec_of(alt.layer(bars, line).properties(width=WIDTH, height=HEIGHT)),
    )]  # fmt: skip


def _told(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(str(row["series"]), f"{row['score']:.1f}") for row in rows]


def _pairs(sweeps: Document) -> list[Figure]:
    names = shown_names(task["name"] for task in sweeps["tasks"])
    rows = [
        {"cross": 100 * pair["cross_normalised"], "merged": 100 * pair["merged_normalised"],
         "encoder": names[pair["encoder"]], "task": names[pair["task"]]}
        for pair in sweeps["pairs"]["pairs"] if pair["cross_normalised"] is not None
        and pair["merged_normalised"] is not None
    ]  # fmt: skip
    chart = alt.Chart(data(rows)).mark_point().encode(
        x=alt.X("cross:Q", title="A's encoder on B, relative to B's expert (%)", scale=alt.Scale(zero=False)),
        y=alt.Y("merged:Q", title="average of A and B on B, relative (%)", scale=alt.Scale(zero=False)),
        color=alt.Color("encoder:N", title="encoder A"),
        tooltip=[alt.Tooltip("encoder:N", title="A"), alt.Tooltip("task:N", title="B"), alt.Tooltip("cross:Q"),
                 alt.Tooltip("merged:Q")],
    )  # fmt: skip
    told = f"per pair {_correlated(sweeps['pairs']['per_pair'])}; per model {_correlated(sweeps['pairs']['per_model'])}"
    return [Figure(
        name="sweep-pairs",
        title="Cross-task performance against merge performance",
        caption=f"A point for every ordered pair of {data_of(sweeps)}: {told}. Pairs share models, so that intervals "
        "and p per pair are too sure.",
        alternative=f"{len(rows)} pairs; Pearson's r {told}.",
        spec=spec_of(chart.properties(width=WIDTH, height=HEIGHT)),
    )]  # fmt: skip


def _correlated(found: Document) -> str:
    if found["r"] is None:
        return f"too few or constant (n {found['n']})"
    span = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    return f"r {found['r']:.2f}{span}, p {found['p']:.2g}, n {found['n']}"
