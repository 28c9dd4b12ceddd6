"""Corrupted pictures (ImageNet-C's kinds), applied to what the model sees: the picture at its input size.

ImageNet-C's constants are made for pictures of the model's input size, after resizing and cropping. Applied to files of
all sizes, one severity would mean something else for each data set (nothing on large photographs, which are then
reduced; destruction on 28x28 digits), so here every task's pictures are corrupted after preprocessing and before
normalisation. Inputs smaller than 32x32, the least that the library takes, are enlarged for it and reduced again.
The constants don't shrink with the picture: at 32 pixels, severity 5 is far harsher than at 224.
"""

import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from taskmerge.errors import UsageError, unknown_name

SEVEN = ("motion_blur", "impulse_noise", "gaussian_noise", "pixelate", "spatter", "contrast", "jpeg")
"""The corruptions of SyMerge (methods of merging under corruption), in its order."""

SHORT = {"jpeg": "jpeg_compression"}
OTHERS = (
    "brightness", "defocus_blur", "elastic_transform", "fog", "frost", "gaussian_blur", "glass_blur",
    "jpeg_compression", "saturate", "shot_noise", "snow", "speckle_noise", "zoom_blur",
)  # fmt: skip
SEVERITIES = range(1, 6)
LEAST_SIDE = 32

Picture = NDArray[np.uint8]
"""[H, W, 3]"""


@dataclass(frozen=True, slots=True)
class Corruption:
    """A kind of corruption by name, and its strength from 1 to 5."""

    name: str
    severity: int = 5

    def __post_init__(self) -> None:
        if self.name not in (*SEVEN, *OTHERS):
            raise unknown_name("corruption", self.name, (*SEVEN, *OTHERS))
        if self.severity not in SEVERITIES:
            raise UsageError(f"severity {self.severity} is not one of 1 to 5", where=self.name, hint="5 is the worst")


def corruptions(names: Sequence[str], severity: int) -> tuple[Corruption, ...]:
    """The named kinds at one severity. Raises UsageError for a kind that is unknown or given twice."""
    found: dict[str, Corruption] = {}
    for name in names:
        one = Corruption(name, severity)
        if found.setdefault(SHORT.get(name, name), one) is not one:
            raise UsageError(f"`{name}` is given twice", where="--corrupt", hint="leave one out")
    return tuple(found.values())


def corrupt_pixels(pixels: Tensor, indices: Tensor, corruption: Corruption, seed: int) -> Tensor:
    """Pictures uint8 [N, 3, H, W], corrupted; `indices` [N] are their places in the source.

    A picture's noise depends on (seed, corruption, severity, index) alone, not on order or neighbours. numpy's global
    generator, which the library draws from, is left as it was: not for several threads at once.
    """
    apply = _library_function(corruption)
    done = torch.empty_like(pixels)
    with _own_numpy_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row, index in enumerate(indices.tolist()):
            words = _noise_key(corruption, seed, index)
            np.random.seed(words)
            picture = np.ascontiguousarray(pixels[row].permute(1, 2, 0).numpy())
            done[row] = torch.from_numpy(_at_least(picture, apply, int(words[0]))).permute(2, 0, 1)
    return done


def _library_function(corruption: Corruption) -> Callable[[Picture, int], Picture]:
    """The library's function, with a seed for those that don't draw from the global generator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import imagecorruptions
        except ImportError:
            hint = "install `imagecorruptions-imaug`"
            raise UsageError("corruptions need the package `imagecorruptions`", where="--corrupt", hint=hint) from None
    name = SHORT.get(corruption.name, corruption.name)
    seeded = "seed" in inspect.signature(imagecorruptions.corruption_dict[name]).parameters

    def apply(picture: Picture, seed: int) -> Picture:
        extra: dict[str, Any] = {"seed": seed} if seeded else {}
        found: Picture = imagecorruptions.corrupt(picture, severity=corruption.severity, corruption_name=name, **extra)
        return found

    return apply


def _at_least(picture: Picture, apply: Callable[[Picture, int], Picture], seed: int) -> Picture:
    """`apply` to a picture [H, W, 3] whose sides are enlarged to 32 for it where they are smaller."""
    height, width = picture.shape[:2]
    if min(height, width) >= LEAST_SIDE:
        return np.array(apply(picture, seed))
    wider = (max(width, LEAST_SIDE), max(height, LEAST_SIDE))
    enlarged = Image.fromarray(picture).resize(wider, Image.Resampling.BICUBIC)
    corrupted = Image.fromarray(apply(np.array(enlarged), seed))
    return np.array(corrupted.resize((width, height), Image.Resampling.BICUBIC))


def _noise_key(corruption: Corruption, seed: int, index: int) -> NDArray[np.uint32]:
    said = f"{seed}\0{SHORT.get(corruption.name, corruption.name)}\0{corruption.severity}\0{index}".encode()
    return np.frombuffer(hashlib.sha256(said).digest(), dtype="<u4")


@contextmanager
def _own_numpy_state() -> Iterator[None]:
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
