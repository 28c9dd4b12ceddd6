"""The SVG that vl-convert draws, read and written anew: known elements alone, short, colours by name, values to hover.

What stays of Vega's own descriptions is one text for each mark, `data-t`, which the page shows at the pointer.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

SPACE = "{http://www.w3.org/2000/svg}"
ELEMENTS = frozenset(
    {"svg", "g", "path", "line", "rect", "text", "tspan", "defs", "clipPath", "linearGradient", "stop"}
)
KEPT = frozenset({
    "clip-path", "cx", "cy", "d", "dx", "dy", "fill", "fill-opacity", "font-size", "font-style", "font-weight",
    "height", "id", "offset", "opacity", "r", "stop-color", "stroke", "stroke-dasharray", "stroke-linecap",
    "stroke-linejoin", "stroke-opacity", "stroke-width", "text-anchor", "transform", "viewBox", "width", "x", "x1",
    "x2", "y", "y1", "y2",
})  # fmt: skip
"""Attributes that draw something; no other comes onto a page."""
DEFAULTS = {"opacity": "1", "stroke-width": "1", "fill-opacity": "1", "stroke-opacity": "1"}
COLOURED = ("fill", "stroke", "stop-color")
UNTOLD = frozenset({"axis", "legend", "title", "line mark", "area mark", "trail mark", "group", "group mark container"})
"""Descriptions of these are of no single value."""
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
LOCAL = re.compile(r"url\(#([\w-]+)\)")


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot of `width` x `height` pixels: what is inside its `svg` element, with `{{name}}` where a colour is."""

    width: float
    height: float
    inside: str

    def on_page(self, attributes: str) -> str:
        """The `svg` element of a page, coloured by the page's variables."""
        inside = _coloured(self.inside, lambda name: f"var(--{name})")
        return f'<svg viewBox="0 0 {self.width:g} {self.height:g}" {attributes}>{inside}</svg>'

    def standing_alone(self, palette: Mapping[str, str], font: str) -> str:
        """A file of its own, on the palette's paper."""
        inside = _coloured(self.inside, lambda name: palette[name])
        size = f'width="{self.width:g}" height="{self.height:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {self.width:g} {self.height:g}"'
        paper = f'<rect {size} fill="{palette["paper"]}"/>'
        looks = f'font-family={quoteattr(font)} fill="none" stroke-miterlimit="10"'
        return f"{head} {looks}>{paper}{inside}</svg>\n"


COLOUR = re.compile(r"\x00(\w+)\x00")
"""A colour's name between two characters that no SVG can hold: no text is taken for one."""


def _coloured(text: str, colour: Callable[[str], str]) -> str:
    return COLOUR.sub(lambda found: colour(found[1]), text)


def rewritten(svg: str, names: Mapping[str, str], prefix: str) -> Drawing:
    """A drawing of vl-convert's SVG. `names` says which colour stands for which role; `prefix` makes ids unique."""
    root = ElementTree.fromstring(svg)
    width, height = (float(root.get(side, "0")) for side in ("width", "height"))
    writer = _Writer(names, re.sub(r"[^\w-]+", "-", prefix))
    inside = "".join(writer.written(child) for child in root)
    return Drawing(width, height, inside)


@dataclass(frozen=True, slots=True)
class _Writer:
    names: Mapping[str, str]
    prefix: str

    def written(self, element: ElementTree.Element) -> str:
        """An element and all in it; nothing for what draws nothing."""
        tag = element.tag.removeprefix(SPACE)
        if tag not in ELEMENTS or element.get("display") == "none" or _empty(element):
            return ""
        if tag in ("text", "tspan"):
            content = escape(element.text or "") + "".join(self.written(child) for child in element)
        else:
            content = "".join(self.written(child) for child in element)
        attributes = self.attributes(element)
        if tag in ("g", "defs") and (not content or (tag == "g" and not attributes)):
            return content
        return f"<{tag}{attributes}>{content}</{tag}>" if content else f"<{tag}{attributes}/>"

    def attributes(self, element: ElementTree.Element) -> str:
        """What is kept of its attributes, short."""
        found = []
        for name, value in element.attrib.items():
            if name not in KEPT or DEFAULTS.get(name) == value or value == "translate(0,0)":
                continue
            found.append(f" {name}={self.value(name, value)}")
        told = element.get("aria-label")
        if told and element.get("role") == "graphics-symbol" and element.get("aria-roledescription") not in UNTOLD:
            found.append(f" data-t={quoteattr(told)}")
        return "".join(found)

    def value(self, name: str, value: str) -> str:
        """One attribute's value, quoted: colours by role, ids of this drawing, numbers to a tenth of a pixel."""
        if name in COLOURED and value.lower() in self.names:
            return f'"\x00{self.names[value.lower()]}\x00"'
        if name == "id":
            return quoteattr(f"{self.prefix}-{value}")
        value = LOCAL.sub(lambda place: f"url(#{self.prefix}-{place[1]})", value)
        if name in COLOURED:
            return quoteattr(value.replace(", ", ","))
        if name == "font-size":
            return quoteattr(value.removesuffix("px"))
        return quoteattr(NUMBER.sub(_shorter, value))


def _empty(element: ElementTree.Element) -> bool:
    """Paths and lines that draw nothing."""
    path = element.get("d")
    if path is not None:
        return path in ("", "M0,0h0v0h0Z") or (element.get("fill") is None and element.get("stroke") is None)
    return False


def _shorter(number: re.Match[str]) -> str:
    value = round(float(number[0]), 2)
    return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 1 else f"{round(value, 1):g}"
