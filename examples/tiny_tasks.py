"""The eight tasks of the tiny suite: their classes, their templates and how one picture of each is drawn."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from drawing import (
    ARROW_STYLES,
    COLOURS,
    PATTERNS,
    SHAPES,
    SIDE,
    Picture,
    arrow,
    colour,
    glyph,
    paint,
    pattern,
    shape,
    two_colours,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
WINDS = ("north", "north east", "east", "south east", "south", "south west", "west", "north west")
SYMBOLS = {
    "a king": "♚", "a queen": "♛", "a rook": "♜", "a bishop": "♝", "a knight": "♞", "a pawn": "♟",
    "a spade": "♠", "a club": "♣", "music": "♫", "a plane": "✈", "scissors": "✂", "a telephone": "☎",
    "an umbrella": "☂", "a snowman": "☃", "an anchor": "⚓", "a skull": "☠",
}  # fmt: skip
LEARNT_FONTS = (
    "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif-Italic.ttf",
    "cmr10.ttf", "cmb10.ttf", "cmti10.ttf", "STIXGeneralBolIta.ttf",
)  # fmt: skip
UNSEEN_FONTS = ("STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "cmtt10.ttf", "cmss10.ttf")

Draw = Callable[[int, np.random.Generator, bool], Picture]  # class, randomness, is it a test picture?


@dataclass(frozen=True, slots=True)
class Task:
    """What a task asks. `draw` is None where the pictures come from scikit-learn."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    draw: Draw | None


@dataclass(frozen=True, slots=True)
class Pictures:
    """Labelled pictures: x [N, SIDE, SIDE, 3] uint8, y [N] int64."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]


def draw_letter(label: int, rng: np.random.Generator, test: bool) -> Picture:
    """A capital letter, turned and sheared; test letters are of fonts that training never sees."""
    font = str(rng.choice(UNSEEN_FONTS if test else LEARNT_FONTS))
    text = LETTERS[label].upper()
    mask = glyph(text, font, rng.uniform(0.65, 0.95), rng.normal(0, 0.15), rng.normal(0, 0.1), rng.uniform(-0.06, 0.06))
    ink, ground = two_colours(rng, 0.4)
    return paint(ground, (mask, ink))


def draw_symbol(label: int, rng: np.random.Generator, test: bool) -> Picture:
    """A symbol of DejaVu Sans, turned and sheared, with a stroke across it."""
    text = tuple(SYMBOLS.values())[label]
    mask = glyph(
        text,
        "DejaVuSans.ttf",
        rng.uniform(0.7, 1.0),
        rng.normal(0, 0.25),
        rng.normal(0, 0.15),
        rng.uniform(-0.08, 0.08),
    )
    ink, ground = two_colours(rng, 0.4)
    stroke = shape("square", tuple(rng.uniform(0.2, 0.8, 2)), 0.6, rng.uniform(0, 6.3), squeeze=0.08)
    return paint(ground, (mask, ink), (stroke, ground))


def draw_shape(label: int, rng: np.random.Generator, test: bool) -> Picture:
    """One shape, filled or hollow, turned and squeezed."""
    centre, radius = tuple(rng.uniform(0.4, 0.6, 2)), rng.uniform(0.3, 0.45)
    name = tuple(SHAPES)[label]
    hollow = bool(rng.uniform() < 0.2) and name not in ("circle", "ring")  # a hollow circle is a ring
    mask = shape(name, centre, radius, rng.normal(0, 0.2), hollow, rng.uniform(0.9, 1.0))
    ink, ground = two_colours(rng, 0.4)
    return paint(ground, (mask, ink))


def draw_colour(label: int, rng: np.random.Generator, test: bool) -> Picture:
    """A shape or a letter in the colour of the class, on a ground and beside a dot of other colours."""
    names = [name for name in COLOURS if name != tuple(COLOURS)[label]]
    ground, third = (colour(str(name), rng) for name in rng.choice(names, 2, replace=False))
    centre = tuple(rng.uniform(0.4, 0.6, 2))
    if rng.uniform() < 0.5:
        mask = shape(str(rng.choice(tuple(SHAPES))), centre, rng.uniform(0.25, 0.4), rng.uniform(0, 2 * np.pi))
    else:
        mask = glyph(str(rng.choice(LETTERS)).upper(), "DejaVuSans-Bold.ttf", rng.uniform(0.5, 0.8))
    dot = shape("circle", tuple(rng.choice([0.1, 0.9], 2)), rng.uniform(0.08, 0.15))
    return paint(ground, (mask, colour(tuple(COLOURS)[label], rng)), (dot, third))


def draw_count(label: int, rng: np.random.Generator, test: bool) -> Picture:
    """One to six shapes of one kind that don't touch."""
    kind = str(rng.choice(("circle", "square", "triangle", "star")))
    ink, ground = two_colours(rng, 0.4)
    places: list[NDArray[np.float64]] = []
    while len(places) <= label:
        place = rng.uniform(0.12, 0.88, 2)
        if all(np.hypot(*(place - other)) > 0.26 for other in places):
            places.append(place)
    turn = rng.uniform(0, 2 * np.pi)
    return paint(ground, *((shape(kind, tuple(place), rng.uniform(0.08, 0.115), turn), ink) for place in places))


def draw_arrow(label: int, rng: np.random.Generator, test: bool) -> Picture:
    """An arrow of any style that points to one of eight winds, give or take twelve degrees."""
    angle = 2 * np.pi * label / 8 + rng.uniform(-0.2, 0.2)
    centre, length = tuple(rng.uniform(0.4, 0.6, 2)), rng.uniform(0.3, 0.42)
    mask = arrow(angle, str(rng.choice(ARROW_STYLES)), centre, length, length * rng.uniform(0.35, 0.7))
    ink, ground = two_colours(rng, 0.4)
    return paint(ground, (mask, ink))


def draw_texture(label: int, rng: np.random.Generator, test: bool) -> Picture:
    """A pattern in two colours, a little turned and bent, with a blot on it."""
    mask = pattern(PATTERNS[label], rng, rng.uniform(2, 5), rng.normal(0, 0.12), rng.uniform(0, 0.06))
    ink, ground = two_colours(rng, 0.15)
    blot = shape("circle", tuple(rng.uniform(0.1, 0.9, 2)), rng.uniform(0.15, 0.3))
    return paint(ground, (mask, ink), (blot, ink))


TASKS = {
    "digits": Task(NUMBERS, ("the number {}", "a handwritten number {}"), None),
    "letters": Task(LETTERS, ("the letter {}", "a capital letter {}"), draw_letter),
    "symbols": Task(tuple(SYMBOLS), ("a symbol of {}", "a picture of {}"), draw_symbol),
    "shapes": Task(tuple(SHAPES), ("a {}", "a picture of a {}"), draw_shape),
    "colours": Task(tuple(COLOURS), ("something {}", "the colour {}"), draw_colour),
    "counts": Task(NUMBERS[1:7], ("a picture of {} things", "{} shapes"), draw_count),
    "arrows": Task(WINDS, ("an arrow to the {}", "pointing {}"), draw_arrow),
    "textures": Task(PATTERNS, ("a pattern of {}", "a texture of {}"), draw_texture),
}


def handwritten_digits(rng: np.random.Generator) -> tuple[Pictures, Pictures]:
    """scikit-learn's 8x8 digits, each pixel drawn three times as large: training and test pictures."""
    digits = load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    x = np.repeat(pixels.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)[..., None], 3, axis=3)
    order, y = rng.permutation(len(x)), digits.target.astype(np.int64)
    return Pictures(x[order[:1397]], y[order[:1397]]), Pictures(x[order[1397:]], y[order[1397:]])


def drawn(task: Task, count: int, rng: np.random.Generator, test: bool) -> Pictures:
    """`count` pictures, the classes in equal parts and mixed."""
    assert task.draw is not None
    y = rng.permutation(np.arange(count) % len(task.classes))
    return Pictures(np.stack([task.draw(int(label), rng, test) for label in y]), y.astype(np.int64))
