"""Draws the pictures with captions that the base model is pre-trained on: clean, upright, of few styles."""

import numpy as np
from numpy.typing import NDArray

from drawing import (
    COLOURS,
    PATTERNS,
    SHAPES,
    Colour,
    Mask,
    Picture,
    arrow,
    colour,
    glyph,
    paint,
    pattern,
    shape,
    two_colours,
)
from tiny_tasks import LETTERS, NUMBERS, SYMBOLS, WINDS

FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf")
Captioned = tuple[str, Picture]


def _pick(names: tuple[str, ...], rng: np.random.Generator) -> str:
    return str(rng.choice(names))


def _ground(rng: np.random.Generator) -> Colour:
    """White, black, or something near."""
    level = int(rng.integers(0, 40))
    return (level, level, level) if rng.uniform() < 0.5 else (255 - level,) * 3


def _near_the_middle(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(0.4, 0.6)), float(rng.uniform(0.4, 0.6))


def _coloured(words: str, mask: Mask, rng: np.random.Generator) -> Captioned:
    """The mask in a colour that the caption names, or (three times of four) in any two colours."""
    if rng.uniform() < 0.25:
        name = _pick(tuple(COLOURS), rng)
        return f"{words} in {name}", paint(_ground(rng), (mask, colour(name, rng)))
    ink, ground = two_colours(rng, 0.3)
    return words, paint(ground, (mask, ink))


def letter(rng: np.random.Generator) -> Captioned:
    """'the letter k'."""
    name = _pick(LETTERS, rng)
    mask = glyph(name.upper(), _pick(FONTS, rng), rng.uniform(0.5, 0.9), rng.normal(0, 0.1), 0.0, rng.normal(0, 0.04))
    return _coloured(f"{_pick(('the letter', 'a capital letter'), rng)} {name}", mask, rng)


def number(rng: np.random.Generator) -> Captioned:
    """'the number five': printed."""
    label = int(rng.integers(10))
    mask = glyph(str(label), _pick(FONTS, rng), rng.uniform(0.6, 0.95), rng.normal(0, 0.1), rng.normal(0, 0.1))
    return _coloured(f"{_pick(('the number', 'a printed number'), rng)} {NUMBERS[label]}", mask, rng)


def symbol(rng: np.random.Generator) -> Captioned:
    """'a symbol of an anchor'."""
    name = _pick(tuple(SYMBOLS), rng)
    mask = glyph(SYMBOLS[name], "DejaVuSans.ttf", rng.uniform(0.7, 1.0), rng.normal(0, 0.2))
    return _coloured(f"{_pick(('a symbol of', 'a picture of'), rng)} {name}", mask, rng)


def one_shape(rng: np.random.Generator) -> Captioned:
    """'a picture of a star', upright, filled, near the middle."""
    name = _pick(tuple(SHAPES), rng)
    mask = shape(name, _near_the_middle(rng), rng.uniform(0.3, 0.45), rng.normal(0, 0.2))
    return _coloured(f"{_pick(('a', 'a picture of a'), rng)} {name}", mask, rng)


def one_colour(rng: np.random.Generator) -> Captioned:
    """'something red', or 'a red star', on white or black."""
    name, ink = _pick(tuple(SHAPES), rng), _pick(tuple(COLOURS), rng)
    mask = shape(name, _near_the_middle(rng), rng.uniform(0.25, 0.45), rng.normal(0, 0.15))
    caption = (f"a {ink} {name}", f"something {ink}", f"the colour {ink}")[rng.integers(3)]
    return caption, paint(_ground(rng), (mask, colour(ink, rng)))


def some_shapes(rng: np.random.Generator) -> Captioned:
    """'a picture of four things', on the places of a grid."""
    count = int(rng.integers(1, 7))
    places = rng.choice(9, count, replace=False).tolist()
    kind, radius = _pick(("circle", "square"), rng), rng.uniform(0.08, 0.12)
    masks = [shape(kind, (0.2 + 0.3 * (p % 3), 0.2 + 0.3 * (p // 3)), radius) for p in places]
    caption = (f"a picture of {NUMBERS[count]} things", f"{NUMBERS[count]} shapes")[rng.integers(2)]
    return _coloured(caption, np.maximum.reduce(masks), rng)


def one_arrow(rng: np.random.Generator) -> Captioned:
    """'an arrow to the north east', which is exact."""
    label = int(rng.integers(8))
    mask = arrow(np.pi * label / 4, _pick(("line", "block"), rng), _near_the_middle(rng), rng.uniform(0.3, 0.4), 0.2)
    return _coloured(f"{_pick(('an arrow to the', 'an arrow pointing'), rng)} {WINDS[label]}", mask, rng)


def one_pattern(rng: np.random.Generator) -> Captioned:
    """'a pattern of rings', straight and clean."""
    name, start = _pick(PATTERNS, rng), _pick(("a pattern of", "a texture of"), rng)
    return _coloured(f"{start} {name}", pattern(name, rng, rng.uniform(2.5, 4), rng.normal(0, 0.05)), rng)


KINDS = (letter, letter, number, symbol, symbol, one_shape, one_shape, one_colour, some_shapes, one_arrow, one_pattern)


def captioned(count: int, rng: np.random.Generator) -> tuple[list[str], NDArray[np.uint8]]:
    """`count` captions and their pictures [count, SIDE, SIDE, 3]."""
    pairs = [KINDS[index % len(KINDS)](rng) for index in range(count)]
    return [caption for caption, _ in pairs], np.stack([picture for _, picture in pairs])
