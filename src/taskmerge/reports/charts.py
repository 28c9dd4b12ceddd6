"""Figures drawn: one Vega-Lite specification becomes SVG for a page (light and dark, wide and narrow), and files.

vl-convert draws without a browser and loads nothing: a specification whose data is elsewhere is refused.
"""

from collections.abc import Mapping
from typing import Any

from taskmerge.errors import plain
from taskmerge.reports import colours
from taskmerge.reports.figures import Figure
from taskmerge.reports.numbers import under
from taskmerge.reports.svg import Drawing, rewritten

NARROW = 328
"""Pixels that a phone of 360 has for a plot."""
SCALE = 2
"""Pixels of a PNG for each of the SVG."""
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
MARKS = colours.MARKS
CONFIG: Mapping[str, Any] = {
    "background": None,
    "font": FONT,
    "view": {"stroke": None, "continuousWidth": 460, "continuousHeight": 260},
    "mark": {"color": MARKS["s1"]},
    "rule": {"color": MARKS["ink"]},
    "text": {"color": MARKS["ink"], "fontSize": 12},
    "point": {"filled": True, "size": 55, "opacity": 1},
    "line": {"strokeWidth": 2},
    "axis": {
        "labelColor": MARKS["muted"], "titleColor": MARKS["ink"], "gridColor": MARKS["grid"],
        "domainColor": MARKS["line"], "tickColor": MARKS["line"], "labelFontSize": 12, "titleFontSize": 12,
        "titleFontWeight": "normal", "labelLimit": 170, "titleLimit": 320,
    },
    "axisX": {"labelSeparation": 6},
    "legend": {
        "labelColor": MARKS["ink"], "titleColor": MARKS["ink"], "labelFontSize": 12, "titleFontSize": 12,
        "titleFontWeight": "normal", "labelLimit": 150, "symbolLimit": 40,
        "symbolBaseFillColor": MARKS["muted"], "symbolBaseStrokeColor": MARKS["muted"],
    },
    "header": {"labelColor": MARKS["ink"], "titleColor": MARKS["ink"], "labelFontSize": 12, "labelLimit": 200},
    "title": {"color": MARKS["ink"], "fontSize": 13, "fontWeight": "normal", "anchor": "start"},
    "range": {
        "category": [MARKS[f"s{number}"] for number in range(1, 9)],
        "ordinal": {"scheme": colours.SEQUENTIAL}, "ramp": {"scheme": colours.SEQUENTIAL},
        "heatmap": {"scheme": colours.SEQUENTIAL}, "diverging": {"scheme": colours.DIVERGING},
    },
}  # fmt: skip
"""What every plot looks like; a specification says only what it shows."""
PARTS = ("layer", "hconcat", "vconcat", "concat")


def wide(figure: Figure) -> Drawing:
    """The plot as its specification has it, its colours as variables of the page's style."""
    return _drawn(figure, _clean(figure.spec), figure.name)


def narrow(figure: Figure) -> Drawing:
    """The plot for a phone: as wide as that is where a plot can be, parts below each other, legends below."""
    spec = _narrowed(_clean(figure.spec))
    if not any(part in spec for part in (*PARTS[1:], "facet", "repeat")):
        spec |= {"width": NARROW, "autosize": {"type": "fit-x", "contains": "padding"}}
    legends = {"orient": "bottom", "columns": 2, "labelLimit": 120}
    spec["config"] = _merged(spec.get("config", {}), {"legend": legends, "axis": {"labelLimit": 100}})
    return _drawn(figure, spec, f"{figure.name}-narrow")


def svg_file(drawing: Drawing) -> str:
    """A plot as a file of its own, in light colours on white."""
    return drawing.standing_alone(colours.variables("light"), FONT)


def png_file(svg: str) -> bytes:
    """The same as pixels, two for each."""
    import vl_convert

    made: bytes = vl_convert.svg_to_png(svg, scale=SCALE)
    return made


def _drawn(figure: Figure, spec: dict[str, Any], prefix: str) -> Drawing:
    import vl_convert

    spec["config"] = _merged(CONFIG, spec.get("config", {}))
    if any("url" in data for data in under(spec, "data")):
        raise ValueError(f"figure `{figure.name}` cannot be drawn: its data lie elsewhere")
    try:
        text = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    except ValueError as error:
        raise ValueError(f"figure `{figure.name}` cannot be drawn: {error}") from error
    return rewritten(text, {mark: name for name, mark in MARKS.items()}, prefix)


def _clean(value: Any) -> Any:
    """A copy whose texts show control characters instead of holding them: SVG has no way to write those."""
    if isinstance(value, Mapping):
        return {key: _clean(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(own) for own in value]
    return plain(value) if isinstance(value, str) else value


def _narrowed(spec: dict[str, Any], room: int = NARROW - 90) -> dict[str, Any]:
    """Parts one below the other, small ones two in a row, none wider than a phone leaves room for."""
    found = dict(spec)
    if "hconcat" in found:
        found["vconcat"] = found.pop("hconcat")
    if "columns" in found:
        found["columns"], room = 2, (NARROW - 100) // 2
    for part in PARTS:
        if part in found:
            found[part] = [_narrowed(own, room) for own in found[part]]
    if isinstance(found.get("spec"), Mapping):
        found["spec"] = _narrowed(found["spec"], room)
    if isinstance(width := found.get("width"), int | float) and width > room:
        found["width"] = room
    return found


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The first with what the second says besides or instead."""
    found = dict(first)
    for key, value in second.items():
        old = found.get(key)
        found[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return found
