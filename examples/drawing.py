"""Draws small pictures: masks of shapes, arrows, glyphs and patterns, and the paint that colours them."""

import colorsys
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 24  # pixels of a picture
FINE = 4 * SIDE  # masks are drawn four times as large and then averaged
LEVELS = 7  # steps between the two colours at an edge: few, so that the pictures compress well

Mask = NDArray[np.uint8]  # [FINE, FINE], 0 or 255
Picture = NDArray[np.uint8]  # [SIDE, SIDE, 3]
Colour = tuple[int, int, int]
Points = NDArray[np.float64]  # [n, 2], a polygon in the unit circle

# Hue, saturation and value of a colour name: the middle, and how far a drawn colour may be from it.
COLOURS = {
    "red": ((0.00, 0.85, 0.85), (0.020, 0.15, 0.15)),
    "orange": ((0.08, 0.90, 0.95), (0.020, 0.10, 0.05)),
    "yellow": ((0.155, 0.80, 0.95), (0.015, 0.20, 0.05)),
    "green": ((0.34, 0.75, 0.65), (0.050, 0.25, 0.20)),
    "cyan": ((0.50, 0.75, 0.85), (0.025, 0.25, 0.15)),
    "blue": ((0.62, 0.80, 0.80), (0.035, 0.20, 0.20)),
    "purple": ((0.77, 0.70, 0.65), (0.025, 0.25, 0.20)),
    "pink": ((0.91, 0.50, 0.95), (0.030, 0.20, 0.05)),
    "brown": ((0.07, 0.70, 0.45), (0.020, 0.15, 0.10)),
    "grey": ((0.50, 0.03, 0.55), (0.500, 0.03, 0.15)),
}
ARROW_STYLES = ("line", "block", "wedge")


def colour(name: str, rng: np.random.Generator) -> Colour:
    """A colour that goes by `name`."""
    middle, spread = COLOURS[name]
    h, s, v = (m + d * rng.uniform(-1, 1) for m, d in zip(middle, spread, strict=True))
    red, green, blue = colorsys.hsv_to_rgb(h % 1, min(max(s, 0), 1), min(max(v, 0), 1))
    return round(255 * red), round(255 * green), round(255 * blue)


def two_colours(rng: np.random.Generator, contrast: float) -> tuple[Colour, Colour]:
    """Two random colours whose brightness differs by at least `contrast` (0 to 1)."""
    while True:
        pair = rng.integers(0, 256, (2, 3))
        light = pair @ np.array([0.299, 0.587, 0.114]) / 255
        if abs(light[0] - light[1]) >= contrast:
            (a, b, c), (d, e, f) = pair.tolist()
            return (a, b, c), (d, e, f)


def paint(background: Colour, *layers: tuple[Mask, Colour]) -> Picture:
    """Lays coloured masks over a background, the last one on top."""
    picture = np.ones((SIDE, SIDE, 3)) * background
    for mask, ink in layers:
        cover = mask.reshape(SIDE, 4, SIDE, 4).mean(axis=(1, 3)) / 255
        cover = np.round(cover * LEVELS)[..., None] / LEVELS
        picture = (1 - cover) * picture + cover * np.array(ink)
    return np.round(picture).astype(np.uint8)


def _regular(corners: int) -> Points:
    angle = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _ring() -> Points:
    outer = _regular(40)[np.arange(41) % 40]  # closed, then the hole backwards
    return np.concatenate([outer, 0.55 * outer[::-1]])


def _star() -> Points:
    return _regular(10) * np.where(np.arange(10) % 2 == 0, 1.0, 0.42)[:, None]


def _cross() -> Points:
    a, b = 0.95, 0.3
    corners = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b)]
    return np.array([*corners, (-b, -b)])


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    across = 16 * np.sin(t) ** 3
    down = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([across, down], axis=1) / 17


def _moon() -> Points:
    outer = _regular(40)[:29]
    inner = outer[::-1] * 0.7 + (outer[0] + outer[-1]) * 0.15
    return np.concatenate([outer, inner])


SHAPES: dict[str, Points] = {
    "circle": _regular(40),
    "square": _regular(4),
    "triangle": _regular(3),
    "pentagon": _regular(5),
    "hexagon": _regular(6),
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
    "moon": _moon(),
    "ring": _ring(),
}


def shape(
    name: str, centre: tuple[float, float], radius: float, turn: float = 0.0, hollow: bool = False, squeeze: float = 1.0
) -> Mask:
    """The mask of one shape; `centre` and `radius` in parts of the side, `turn` in radians."""
    image = Image.new("L", (FINE, FINE))
    draw = ImageDraw.Draw(image)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = FINE * ((SHAPES[name] * [squeeze, 1.0]) @ rotation * radius + centre)
    outline = [(float(x), float(y)) for x, y in points]
    if hollow:
        draw.line([*outline, outline[0], outline[1]], fill=255, width=7, joint="curve")
    else:
        draw.polygon(outline, fill=255)
    return np.asarray(image)


def arrow(angle: float, style: str, centre: tuple[float, float], length: float, width: float) -> Mask:
    """The mask of an arrow that points to `angle` (radians, 0 is up, clockwise)."""
    polygons = {
        "line": [(0.25, 1), (0.25, -0.1), (1, 0.45), (1, 0.1), (0, -1), (-1, 0.1), (-1, 0.45), (-0.25, -0.1)],
        "block": [(0.5, 1), (0.5, 0), (1, 0), (0, -1), (-1, 0), (-0.5, 0), (-0.5, 1)],
        "wedge": [(0.8, 1), (0, -1), (-0.8, 1), (0, 0.55)],
    }
    points = np.array(polygons[style] + ([(-0.25, 1)] if style == "line" else [])) * [width, length]
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    image = Image.new("L", (FINE, FINE))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in FINE * (points @ rotation + centre)], fill=255)
    return np.asarray(image)


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file, size)


def glyph(text: str, font: str, size: float, turn: float = 0.0, shear: float = 0.0, move: float = 0.0) -> Mask:
    """The mask of a character in the middle of the picture; `size` of its larger side in parts of the side.

    `turn` in radians, `shear` sideways, `move` sideways and `-move` downwards, in parts of the side.
    """
    left, top, right, bottom = _font(font, FINE).getbbox(text)
    image = Image.new("L", (2 * FINE, 2 * FINE))
    middle = ((left + right) / 2, (top + bottom) / 2)
    place = (FINE - middle[0], FINE - middle[1])
    ImageDraw.Draw(image).text(place, text, fill=255, font=_font(font, FINE))
    scale = max(right - left, bottom - top) / (size * FINE)
    inverse = scale * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) @ [[1, shear], [0, 1]]
    offset = FINE - inverse @ (FINE * np.array([0.5 + move, 0.5 - move]))
    coefficients = (*inverse[0].tolist(), float(offset[0]), *inverse[1].tolist(), float(offset[1]))
    warped = image.transform((FINE, FINE), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(warped)


PATTERNS = (
    "horizontal stripes", "vertical stripes", "rising stripes", "falling stripes", "a checkerboard",
    "dots", "a grid", "rings", "rays", "a zigzag",
)  # fmt: skip


def pattern(name: str, rng: np.random.Generator, periods: float, turn: float = 0.0, bend: float = 0.0) -> Mask:
    """The mask of a pattern with about `periods` repetitions; `turn` in radians, `bend` of a soft wave."""
    down, across = np.mgrid[0:FINE, 0:FINE] / FINE - 0.5
    across = across + bend * np.sin(2 * np.pi * (down + rng.uniform()))
    x = np.cos(turn) * across + np.sin(turn) * down
    y = np.cos(turn) * down - np.sin(turn) * across
    phase, other = rng.uniform(size=2)
    share = rng.uniform(0.35, 0.65)  # of a period that is inked

    def wave(position: NDArray[np.float64], shift: float = phase) -> NDArray[np.bool_]:
        return (periods * position + shift) % 1 < share

    centre = rng.uniform(-0.15, 0.15, 2)
    radius, angle = np.hypot(x - centre[0], y - centre[1]), np.arctan2(y - centre[1], x - centre[0])
    dot = np.hypot((periods * x + phase) % 1 - 0.5, (periods * y + other) % 1 - 0.5)
    ink = {
        "horizontal stripes": lambda: wave(y),
        "vertical stripes": lambda: wave(x),
        "rising stripes": lambda: wave((x + y) / np.sqrt(2)),
        "falling stripes": lambda: wave((x - y) / np.sqrt(2)),
        "a checkerboard": lambda: (np.floor(periods * x + phase) + np.floor(periods * y + other)) % 2 < 1,
        "dots": lambda: dot < 0.25 + share / 4,
        "a grid": lambda: ((periods * x + phase) % 1 < share / 2) | ((periods * y + other) % 1 < share / 2),
        "rings": lambda: wave(1.4 * radius),
        "rays": lambda: (round(1.6 * periods) * angle / (2 * np.pi) + phase) % 1 < share,
        "a zigzag": lambda: wave(y + 0.6 / periods * np.abs((periods * x + other) % 2 - 1)),
    }[name]()
    return (255 * ink).astype(np.uint8)
