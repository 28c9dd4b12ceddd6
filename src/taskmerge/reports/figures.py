"""A plot as a value: a Vega-Lite specification with its data inside, and what it shows in words."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot. `spec` names no colours, fonts or background: the page's theme is applied where it is drawn.

    `name` is the stem of its files, `caption` says what is plotted, in which units, of how many, and what intervals
    mean; `alternative` says in words and numbers what there is to see.
    """

    name: str
    title: str
    caption: str
    alternative: str
    spec: Mapping[str, object]
