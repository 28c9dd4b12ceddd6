"""Colours: strong enough on their background, and apart for eyes that see red, green or blue weakly."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from taskmerge.reports import colours

EYES = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB."""
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
"""The palette that is usually recommended."""


def linear(colour: str) -> NDArray[np.float64]:
    value = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio."""
    bright = sorted((float(linear(one) @ [0.2126, 0.7152, 0.0722]) + 0.05 for one in (first, second)), reverse=True)
    return bright[0] / bright[1]


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ottosson's OKLab of linear RGB."""
    cones = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                      [0.0883024619, 0.2817188376, 0.6299787005]]) @ rgb  # fmt: skip
    mixed = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                      [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
    return mixed @ np.cbrt(np.clip(cones, 0, None))


def nearest(palette: tuple[str, ...], eyes: str) -> float:
    """The smallest distance between two colours of a palette."""
    seen = [oklab(np.clip(np.array(EYES[eyes]) @ linear(colour), 0, 1)) for colour in palette]
    return min(float(np.linalg.norm(first - second)) for first, second in combinations(seen, 2))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_marks_and_text_stand_out_from_the_background(theme: str) -> None:
    paper = colours.BACKGROUND[theme]
    assert all(contrast(colour, paper) >= 3 for colour in colours.SERIES[theme])
    assert all(contrast(colours.ROLES[theme][role], paper) >= 4.5 for role in ("ink", "muted"))
    assert contrast(colours.ROLES[theme]["line"], paper) >= 3


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eyes", EYES)
def test_colours_are_further_apart_than_the_usual_palettes(theme: str, eyes: str) -> None:
    worst = min(nearest(OKABE_ITO, one) for one in EYES)
    assert nearest(colours.SERIES[theme], eyes) > 1.4 * worst


def test_marks_for_colours_are_found_in_no_palette() -> None:
    assert len(set(colours.MARKS.values())) == len(colours.MARKS)
    assert set(colours.MARKS) == set(colours.variables("light")) == set(colours.variables("dark"))
