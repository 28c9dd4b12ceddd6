"""Plots of sweeps: scores over rank and coefficient, routing, subsets, components, the landscape, pairs."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import altair as alt

from taskmerge.reports.charting import PANEL, WIDTH, data, listed_values, percent, shown, shown_names, spec_of
from taskmerge.reports.figures import Figure
from taskmerge.reports.sweep_tables import NAMES, loss_title, mean_loss, plain_in, scale_in, score_of, unit_of

Document = Mapping[str, Any]
Box = tuple[float, float, float, float]
"""Left, lower, right and upper edge, in pixels."""
HEIGHT = 280
LETTER, NAMED = 6.2, 13.0
"""Pixels of a letter of a label, and of its height."""
STROKES = alt.Legend(symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2, labelLimit=260)
INTERVALS = "bands are 95% intervals of the mean over tasks"


def sweep_figures(report: Mapping[str, Any]) -> list[Figure]:
    """The plots of the part `sweeps` of a report (or of that part alone): those that it has something for."""
    sweeps = report.get("sweeps", report)
    makers = {
        "rank": _rank, "coefficient": _coefficient, "routing": _routing, "subsets": _subsets,
        "components": _components, "landscape": _landscape, "pairs": _pairs,
    }  # fmt: skip
    return [figure for kind, make in makers.items() if kind in sweeps for figure in make(sweeps)]


def _data_of(sweeps: Document) -> str:
    """What was scored, for captions."""
    sizes = [task["n"] for task in sweeps["tasks"]]
    few, many = min(sizes), max(sizes)
    items = f"{few:,} items a task" if few == many else f"{few:,} to {many:,} items a task"
    return f"{len(sizes)} tasks of {shown(sweeps['suite'])}, split {shown(sweeps['split'])}, {items}"


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
        caption=f"Mean over {_data_of(sweeps)}, over the {what} that is kept of every matrix; solid lines keep the "
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
        caption=f"Mean over {_data_of(sweeps)}, over the coefficient λ; truncated methods keep "
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
        caption=f"Mean over {_data_of(sweeps)}: each task is served by a model of its own, the average or the base and "
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
    dash = _dashed("direction", ["proper", "reversed"])
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


def _dashed(field: str, names: Sequence[str]) -> alt.StrokeDash:
    """The first of two names as a solid line, the second dashed."""
    scale = alt.Scale(domain=list(names), range=[[1, 0], [5, 4]])
    return alt.StrokeDash(f"{field}:N", title=None, scale=scale, legend=STROKES)


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
        caption=f"Every subset of {_data_of(sweeps)} is merged and scored on its own tasks; lines are means over the "
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
        caption=f"A point for every ordered pair of {_data_of(sweeps)}: {told}. Pairs share models, so that intervals "
        "and p per pair are too sure.",
        alternative=f"{len(rows)} pairs; Pearson's r {told}.",
        spec=spec_of(chart.properties(width=WIDTH, height=HEIGHT)),
    )]  # fmt: skip


def _correlated(found: Document) -> str:
    if found["r"] is None:
        return f"too few or constant (n {found['n']})"
    span = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    return f"r {found['r']:.2f}{span}, p {found['p']:.2g}, n {found['n']}"


# --- losses ----------------------------------------------------------------------------------------------------


def _components(sweeps: Document) -> list[Figure]:
    matrices = list(dict.fromkeys(point["matrix"] for point in sweeps["components"]["points"]))
    names = shown_names(matrices)
    rows = [row for matrix in matrices for row in _changes(sweeps, matrix, names[matrix])]
    base = alt.Chart(data(rows)).encode(
        x=alt.X("component:Q", title="component (1 the largest)", scale=alt.Scale(type="log", nice=False)),
        y=alt.Y("change:Q", title="change of the loss"),
        color=alt.Color("of:N", title=None, legend=STROKES),
        strokeDash=_dashed("how", ["exact", "proxy"]),
        tooltip=[alt.Tooltip("of:N", title="loss of"), alt.Tooltip("how:N"), alt.Tooltip("component:Q"),
                 alt.Tooltip("change:Q")],
    )  # fmt: skip
    chart = base.mark_line(point=True).properties(width=2 * PANEL, height=PANEL).facet(
        facet=alt.Facet("matrix:N", title=None), columns=2
    )  # fmt: skip
    firsts = [row for row in rows if row["component"] == 1 and row["how"] == "exact"]
    labels = ", ".join(sorted({"the split's labels" if own == "true" else "the experts' predictions"
                               for own in sweeps["components"]["labels"].values()}))  # fmt: skip
    return [Figure(
        name="sweep-components",
        title="Loss change of single components",
        caption="Change of the loss when one singular component of a task's matrix, times "
        f"{sweeps['components']['coefficient']:g}, is added to the merge of the OTHER tasks: of that task's own loss, "
        f"and of the others' (means over tasks; {_data_of(sweeps)}; against {labels}). Dashed: the first-order proxy "
        "from one backward pass.",
        alternative="The largest component: " + listed_values([
            (f"{row['matrix']}, {row['of']}", f"{row['change']:+.3g}") for row in firsts]) + ".",
        spec=spec_of(chart),
    )]  # fmt: skip


def _changes(sweeps: Document, matrix: str, name: str) -> list[dict[str, Any]]:
    """Means over tasks of the change of the task's own loss and of the others', exact and by proxy."""
    points = [point for point in sweeps["components"]["points"] if point["matrix"] == matrix]
    rows = []
    for component in sorted({point["component"] for point in points}):
        here = [(point["task"], change) for point in points if point["component"] == component
                for change in point["changes"]]  # fmt: skip
        for of in ("its own task", "the other tasks"):
            own = [change for task, change in here if (task == change["task"]) == (of == "its own task")]
            for how, key in (("exact", "change"), ("proxy", "proxy")):
                values = [change[key] for change in own if change[key] is not None]
                if values:
                    row = {"matrix": name, "component": component, "of": of, "how": how, "change": fmean(values)}
                    rows.append(row)
    return rows


def _landscape(sweeps: Document) -> list[Figure]:
    return [_plane(sweeps), _neighbourhoods(sweeps)]


def _plane(sweeps: Document) -> Figure:
    """The mean loss on the plane, the models, and the ways of the methods, seen from above."""
    landscape, loss = sweeps["landscape"], loss_title(sweeps)
    grid = [{"x": one["x"], "y": one["y"], "loss": mean_loss(one, sweeps)} for one in landscape["grid"]]
    names = shown_names(one["model"] for one in landscape["models"])
    models = [
        {
            "x": one["x"], "y": one["y"], "model": names[one["model"]], "distance": one["distance"],
            "loss": mean_loss(one, sweeps),
        }
        for one in landscape["models"]
    ]  # fmt: skip
    shares = landscape["variance_shares"]
    farthest = max((way["distance"] for way in landscape["ways"]), default=0.0)
    told = listed_values([(str(one["model"]), _told_loss(one["loss"])) for one in models])
    known = [one["loss"] for one in grid if one["loss"] is not None]
    blank = " Where there is no colour outputs held NaN or infinity." if len(known) < len(grid) else ""
    return Figure(
        name="sweep-landscape",
        title="Loss landscape",
        caption=f"{loss.capitalize()} over {_data_of(sweeps)} on the plane of the first two principal components of "
        f"experts, average and base, which hold {percent(shares[0])} and {percent(shares[1])} of their variance. Lines "
        f"are merges over rank and coefficient, projected: they lie up to {farthest:.3g} off the plane, so that their "
        f"own loss (on hover) is not that of the place where they are drawn.{blank}",
        alternative=f"{loss.capitalize().replace('loss', 'losses')}: {told}; lowest on the grid "
        f"{_told_loss(min(known, default=None))}.",
        spec=_map(grid, models, _ways(sweeps), loss),
    )


def _told_loss(loss: float | None) -> str:
    return "none" if loss is None else f"{loss:.3g}"


def _map(
    grid: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    ways: Sequence[Mapping[str, Any]],
    title: str,
) -> Mapping[str, object]:
    """Squares of the grid, coloured by loss, under ways and models."""
    right, up = (_step(grid, axis) / 2 for axis in ("x", "y"))
    cells = [
        {
            "x": one["x"] - right, "x2": one["x"] + right, "y": one["y"] - up, "y2": one["y"] + up,
            "loss": one["loss"],
        }
        for one in grid
    ]  # fmt: skip
    scale = alt.Scale(nice=False, zero=False)
    x = alt.X("x:Q", title="first principal component (distance in weights)", scale=scale)
    y = alt.Y("y:Q", title="second", scale=scale)
    surface = alt.Chart(data(cells)).mark_rect(opacity=0.5).encode(
        x=x, x2="x2:Q", y=y, y2="y2:Q", color=alt.Color("loss:Q", title=title, scale=alt.Scale(type="log")),
        tooltip=[alt.Tooltip("loss:Q", title=title)],
    )  # fmt: skip
    told = [alt.Tooltip("loss:Q", title=title), alt.Tooltip("distance:Q", title="off the plane")]
    lines = alt.Chart(data(ways)).mark_line(point={"size": 18}).encode(
        x=x, y=y, order="order:Q", color=alt.Color("method:N", title=None, legend=STROKES),
        strokeDash=_dashed("over", ["over coefficient", "over rank"]),
        tooltip=[alt.Tooltip("method:N"), alt.Tooltip("at:N"), *told],
    )  # fmt: skip
    marks = alt.Chart(data(models)).mark_point(size=90, shape="diamond")
    marks = marks.encode(x=x, y=y, tooltip=[alt.Tooltip("model:N"), *told])
    text = alt.Chart(data(_labels(models, cells))).mark_text().encode(x=x, y=y, text="model:N")
    layers = alt.layer(surface, lines, marks, text).resolve_scale(color="independent")
    return spec_of(layers.properties(width=WIDTH, height=WIDTH))


def _labels(models: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, float]]) -> list[dict[str, object]]:
    """The models' names beside their marks, where they cover neither marks nor each other, as far as there is room."""
    low = {axis: min(cell[axis] for cell in cells) for axis in "xy"}
    pixel = {axis: (max(cell[f"{axis}2"] for cell in cells) - low[axis]) / WIDTH or 1.0 for axis in "xy"}
    spots = [((model["x"] - low["x"]) / pixel["x"], (model["y"] - low["y"]) / pixel["y"]) for model in models]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    placed: list[dict[str, object]] = []
    for model, (x, y) in zip(models, spots, strict=True):
        half = LETTER * len(model["model"]) / 2
        moves = [(0, 12), (0, -12), (half + 9, 0), (-half - 9, 0)]
        moves += [(side * (half + 9), up) for up in (-12, 12, -24, 24, -36, 36) for side in (0, 1, -1)]
        middles = [(x + right, y + up) for right, up in moves]
        boxes = [(across - half, up - 5, across + half, up + 5) for across, up in middles]
        best = min(range(len(moves)), key=lambda move: sum(_covers(boxes[move], other) for other in taken))
        taken.append(boxes[best])
        placed.append({
            "model": model["model"], "x": low["x"] + middles[best][0] * pixel["x"],
            "y": low["y"] + middles[best][1] * pixel["y"],
        })  # fmt: skip
    return placed


def _covers(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _step(grid: Sequence[Mapping[str, float]], axis: str) -> float:
    """The distance between two columns or rows of the grid."""
    places = sorted({one[axis] for one in grid})
    return (places[-1] - places[0]) / max(1, len(places) - 1)


def _ways(sweeps: Document) -> list[dict[str, Any]]:
    """The points of every method over rank, and over coefficient, in their order."""
    rows: list[dict[str, Any]] = []
    ways = sweeps["landscape"]["ways"]
    for method in dict.fromkeys(way["method"] for way in ways):
        own = [way for way in ways if way["method"] == method]
        usual = own[0]["coefficient"]  # the first points vary in rank alone
        fixed = own[-1]["rank"]
        chosen = {"rank": [way for way in own if way["coefficient"] == usual],
                  "coefficient": [way for way in own if way["rank"] == fixed]}  # fmt: skip
        for key, several in chosen.items():
            rows += [
                {"method": NAMES[method], "over": f"over {key}", "order": float(way[key]), "at": f"{key} {way[key]}",
                 "x": way["x"], "y": way["y"], "distance": way["distance"], "loss": mean_loss(way, sweeps)}
                for way in several
            ]  # fmt: skip
    return rows


def _neighbourhoods(sweeps: Document) -> Figure:
    """A small map of each expert's own loss around it."""
    landscape = sweeps["landscape"]
    names = shown_names(task["name"] for task in sweeps["tasks"])
    rows = [{"task": names[one["task"]], "column": one["column"], "row": one["row"], "x": one["x"], "y": one["y"],
             "loss": one["losses"][0]["mean"]} for one in landscape["near"]]  # fmt: skip
    middle = landscape["around"] // 2
    chart = alt.Chart(data(rows)).mark_rect().encode(
        x=alt.X("column:O", title=None, axis=None), y=alt.Y("row:O", title=None, axis=None, sort="descending"),
        color=alt.Color("loss:Q", title="loss", scale=alt.Scale(type="log")),
        tooltip=[alt.Tooltip("task:N"), alt.Tooltip("x:Q", title="step along the first"),
                 alt.Tooltip("y:Q", title="along the second"), alt.Tooltip("loss:Q")],
    )  # fmt: skip
    side = PANEL * 0.7
    panels = chart.properties(width=side, height=side).facet(facet=alt.Facet("task:N", title=None), columns=4)
    own = [(str(row["task"]), _told_loss(row["loss"])) for row in rows if row["column"] == row["row"] == middle]
    return Figure(
        name="sweep-neighbourhoods",
        title="The neighbourhood of each expert",
        caption="Each expert's loss on its own task around it, parallel to the plane, up to half its distance from the "
        f"average; the expert is in the middle ({_data_of(sweeps)}).",
        alternative=f"Losses of the experts themselves: {listed_values(own)}.",
        spec=spec_of(panels),
    )
