"""The colours of pages and plots, light and dark: kept apart by eyes that see red, green or blue weakly.

Plots are drawn once with a mark for each role, which stands for a variable of the page's style, or for the light
colour in a file. `tests/reports/test_colours.py` measures contrast, and distances under three kinds of colour
blindness.
"""

from collections.abc import Mapping
from types import MappingProxyType

BACKGROUND: Mapping[str, str] = MappingProxyType({"light": "#ffffff", "dark": "#161b22"})
SERIES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "light": ("#364acc", "#a82418", "#929300", "#d771a4", "#6d0b47", "#6582f2", "#7d5986", "#421c8d"),
    "dark": ("#6e69f3", "#eeef08", "#de3e2d", "#2fcda3", "#a3f5fa", "#a16d8f", "#a494f6", "#dfa635"),
})  # fmt: skip
"""Colours of categories, the most distinct first."""
ROLES: Mapping[str, Mapping[str, str]] = MappingProxyType({
    "light": MappingProxyType({"ink": "#1f2328", "muted": "#59636e", "line": "#8c959f", "grid": "#dfe3e8"}),
    "dark": MappingProxyType({"ink": "#e6edf3", "muted": "#9da7b3", "line": "#6e7681", "grid": "#30363d"}),
})  # fmt: skip
"""Text, smaller text, axes, and the lines behind a plot."""
SEQUENTIAL, DIVERGING = "viridis", "blueorange"
"""Vega's schemes for amounts, and for what has a middle: the same on either background."""


def variables(theme: str) -> dict[str, str]:
    """Name -> colour of everything a plot uses, in one theme."""
    series = {f"s{number}": colour for number, colour in enumerate(SERIES[theme], 1)}
    return {**ROLES[theme], **series, "paper": BACKGROUND[theme]}


MARKS: Mapping[str, str] = MappingProxyType(
    {name: f"#0dfa{number:02x}" for number, name in enumerate(variables("light"))}
)
"""Name -> what stands for it in a plot while it is drawn."""
