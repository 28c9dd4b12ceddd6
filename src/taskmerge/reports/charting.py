"""What makers of plots share: rows of plain values in, a Vega-Lite specification without colours and fonts out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from taskmerge.errors import plain

WIDTH, PANEL, STEP = 420, 150, 18
"""Pixels: a single plot's width, a small panel's, and a row of a heat map."""
SHAPES = ("circle", "diamond", "square", "triangle-up", "cross", "triangle-down", "triangle-left", "triangle-right")
"""Of marks, in the order of colours: told apart without them."""
FEW, TALL = 10, 28
"""Rows of a heat map up to which they are taller."""
COLUMNS = 4
NAME = 30
"""Characters of a task's or checkpoint's name; the rest of a longer one is left out."""
STROKES = alt.Legend(symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2, labelLimit=260)
"""The legend of lines."""
Row = Mapping[str, object]


def rounded(value: float) -> float:
    """Four significant digits: what a picture can show, and a page has room for."""
    return float(f"{value:.4g}")


def shown(name: str, most: int = NAME) -> str:
    """A name as a plot shows it: without control characters, and not longer than there is room for."""
    text = plain(name)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def shown_names(names: Iterable[str], most: int = NAME) -> dict[str, str]:
    """Every name as a plot shows it, no two the same."""
    found: dict[str, str] = {}
    for name in names:
        text, count = shown(name, most), 2
        while text in found.values():
            text, count = f"{shown(name, most)} ({count})", count + 1
        found[name] = text
    return found


def data(rows: Sequence[Row]) -> alt.InlineData:
    """Rows as a plot's data, their numbers rounded."""
    values = [{key: rounded(own) if isinstance(own, float) else own for key, own in row.items()} for row in rows]
    return alt.InlineData(values=values)


def spec_of(chart: alt.TopLevelMixin) -> Mapping[str, object]:
    """A chart as a specification that leaves everything about its looks to the page."""
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)
    return spec


def colours(values: Iterable[float], *, least: float = 0.1, within: tuple[float, float] | None = None) -> alt.Scale:
    """A scale of colours over the values' range, which is widened to `least`, so that noise does not look like more;
    around zero where some are negative."""
    found = [value for value in values if math.isfinite(value)]
    low, high = min(found, default=0.0), max(found, default=0.0)
    if low < 0:
        most = max(-low, high, least / 2)
        return alt.Scale(domain=[-most, most], domainMid=0, clamp=True)
    gap = max(0.0, least - (high - low)) / 2
    low, high = low - gap, high + gap
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    return alt.Scale(domain=[rounded(low), rounded(high)], clamp=True)


def heat_map(
    rows: Sequence[Row], *, across: Sequence[str], down: Sequence[str], titles: tuple[str, str], value: alt.Color,
    tooltip: Sequence[alt.Tooltip], text: alt.Text | None = None, pale: str = "",
) -> Mapping[str, object]:  # fmt: skip
    """A heat map of rows with `x` and `y` among the given names; `titles` are those of across and down. `text` stands
    in the cells, black where the condition `pale` on `datum` holds, else white: on colours that both themes share."""
    base = alt.Chart(data(rows)).encode(
        x=alt.X("x:N", sort=list(across), title=titles[0], axis=alt.Axis(labelAngle=-40, labelLimit=120)),
        y=alt.Y("y:N", sort=list(down), title=titles[1], axis=alt.Axis(labelLimit=160)),
        tooltip=list(tooltip),
    )
    layers = [base.mark_rect().encode(color=value)]
    if text is not None:
        ink = alt.condition(pale, alt.value("#000000"), alt.value("#ffffff"))
        layers.append(base.mark_text(fontSize=11, aria=False).encode(text=text, color=ink))
    chart = alt.layer(*layers) if text is not None else layers[0]
    step = STEP if len(down) > FEW else TALL
    return spec_of(chart.properties(width=WIDTH, height=max(60, step * len(down))))


def listed_values(pairs: Iterable[tuple[str, str]], most: int = 24) -> str:
    """`name value` for each, in words: what a plot's text alternative tells."""
    told = [f"{plain(name)} {value}" for name, value in pairs]
    return "; ".join(told[:most]) + (f"; and {len(told) - most} more" if len(told) > most else "")


def percent(value: float) -> str:
    """A share in percent, as tables tell it."""
    return f"{100 * value:z.1f}%"


def data_of(sweeps: Mapping[str, Any]) -> str:
    """What was scored, for captions."""
    sizes = [task["n"] for task in sweeps["tasks"]]
    few, many = min(sizes), max(sizes)
    items = f"{few:,} items a task" if few == many else f"{few:,} to {many:,} items a task"
    return f"{len(sizes)} tasks of {shown(sweeps['suite'])}, split {shown(sweeps['split'])}, {items}"


def dashed(field: str, names: Sequence[str]) -> alt.StrokeDash:
    """The first of two names as a solid line, the second dashed."""
    scale = alt.Scale(domain=list(names), range=[[1, 0], [5, 4]])
    return alt.StrokeDash(f"{field}:N", title=None, scale=scale, legend=STROKES)
