"""Plots of sweeps that measure losses: single components, the landscape and the neighbourhoods of experts."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import altair as alt

from taskmerge.reports.charting import (
    PANEL,
    STROKES,
    WIDTH,
    dashed,
    data,
    data_of,
    listed_values,
    percent,
    shown_names,
    spec_of,
)
from taskmerge.reports.figures import Figure
from taskmerge.reports.sweep_tables import NAMES, loss_title, mean_loss

Document = Mapping[str, Any]
Box = tuple[float, float, float, float]
"""Left, lower, right and upper edge, in pixels."""
LETTER = 6.2
"""Pixels of a letter of a label."""


def components(sweeps: Document) -> list[Figure]:
    """The change of losses over the component that is added."""
    matrices = list(dict.fromkeys(point["matrix"] for point in sweeps["components"]["points"]))
    names = shown_names(matrices)
    rows = [row for matrix in matrices for row in _changes(sweeps, matrix, names[matrix])]
    base = alt.Chart(data(rows)).encode(
        x=alt.X("component:Q", title="component (1 the largest)", scale=alt.Scale(type="log", nice=False)),
        y=alt.Y("change:Q", title="change of the loss"),
        color=alt.Color("of:N", title=None, legend=STROKES),
        strokeDash=dashed("how", ["exact", "proxy"]),
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
        f"and of the others' (means over tasks; {data_of(sweeps)}; against {labels}). Dashed: the first-order proxy "
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


def landscape(sweeps: Document) -> list[Figure]:
    """The plane with models and ways, and the neighbourhood of each expert."""
    return [_plane(sweeps), _neighbourhoods(sweeps)]


def _plane(sweeps: Document) -> Figure:
    """The mean loss on the plane, the models, and the ways of the methods, seen from above."""
    found, loss = sweeps["landscape"], loss_title(sweeps)
    grid = [{"x": one["x"], "y": one["y"], "loss": mean_loss(one, sweeps)} for one in found["grid"]]
    names = shown_names(one["model"] for one in found["models"])
    models = [
        {
            "x": one["x"], "y": one["y"], "model": names[one["model"]], "distance": one["distance"],
            "loss": mean_loss(one, sweeps),
        }
        for one in found["models"]
    ]  # fmt: skip
    shares = found["variance_shares"]
    farthest = max((way["distance"] for way in found["ways"]), default=0.0)
    told = listed_values([(str(one["model"]), _told_loss(one["loss"])) for one in models])
    known = [one["loss"] for one in grid if one["loss"] is not None]
    blank = " Where there is no colour outputs held NaN or infinity." if len(known) < len(grid) else ""
    return Figure(
        name="sweep-landscape",
        title="Loss landscape",
        caption=f"{loss.capitalize()} over {data_of(sweeps)} on the plane of the first two principal components of "
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
        strokeDash=dashed("over", ["over coefficient", "over rank"]),
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
    found = sweeps["landscape"]
    names = shown_names(task["name"] for task in sweeps["tasks"])
    rows = [{"task": names[one["task"]], "column": one["column"], "row": one["row"], "x": one["x"], "y": one["y"],
             "loss": one["losses"][0]["mean"]} for one in found["near"]]  # fmt: skip
    middle = found["around"] // 2
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
        f"average; the expert is in the middle ({data_of(sweeps)}).",
        alternative=f"Losses of the experts themselves: {listed_values(own)}.",
        spec=spec_of(panels),
    )
