"""Pictures as uint8 squares, made once, and the float32 values that a module makes of them on its device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from taskmerge.errors import BadFile, Mismatch
from taskmerge.types import Inputs

Triple = tuple[float, float, float]
Geometry = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class PicturePrepare:
    """PIL pictures or uint8 arrays [H, W, 3] -> `pixels` uint8 [N, 3, H, W].

    `geometry` resizes and crops to `size` (height, width); a picture of that size is left as it is. With `size` None
    pictures keep their own, which must be the same for all and a multiple of `step`. Float arrays in [0, 1] are
    rounded to 8 bits, and arrays may come channels first or without channels (grey). `where` is for messages.
    """

    key: str
    size: tuple[int, int] | None
    geometry: Geometry | None = None
    step: int = 1
    where: str = ""

    def __call__(self, raw: Sequence[Any]) -> Inputs:
        """Raw items as inputs. Raises `Mismatch` for texts, `BadFile` for what is no picture."""
        if not len(raw):
            height, width = self.size or (0, 0)
            return {"pixels": torch.empty((0, 3, height, width), dtype=torch.uint8)}
        first = self._one(raw[0], 0)
        size = self.size or self._own_size(first)
        pixels = torch.empty((len(raw), 3, *size), dtype=torch.uint8)
        for place, item in enumerate(raw):
            picture = first if place == 0 else self._one(item, place)
            if picture.shape[:2] != size:
                what = f"picture {place} is {_sides(picture)}, the first one {_sides(first)}"
                raise Mismatch(what, where=self.where or None, hint="dense tasks need pictures of one size")
            pixels[place] = torch.from_numpy(picture).permute(2, 0, 1)
        return {"pixels": pixels}

    def _one(self, item: Any, place: int) -> NDArray[np.uint8]:
        """One picture as uint8 [H, W, 3], resized and cropped if it has to be."""
        if isinstance(item, str) or (isinstance(item, list | tuple) and item and isinstance(item[0], str)):
            raise Mismatch(
                "texts for a backbone that sees pictures", where=self.where or None, hint="check `backbone` and data"
            )
        picture = item if isinstance(item, Image.Image) else _bytes(item, place)
        if isinstance(picture, Image.Image):
            if self.geometry is not None and picture.size[::-1] != self.size:
                picture = self.geometry(picture)
            return np.array(picture.convert("RGB"))
        if self.geometry is None or picture.shape[:2] == self.size:
            return picture
        return np.array(self.geometry(Image.fromarray(picture)))

    def _own_size(self, picture: NDArray[np.uint8]) -> tuple[int, int]:
        height, width = picture.shape[:2]
        if height % self.step or width % self.step:
            what = f"pictures are {_sides(picture)}, sides must be multiples of {self.step}"
            raise Mismatch(what, where=self.where or None, hint="resize pictures and labels alike")
        return height, width


def normalised(pixels: Tensor, mean: Triple, std: Triple) -> Tensor:
    """uint8 [N, 3, H, W] -> (pixels / 255 - mean) / std, float32, in this order of operations."""
    values = pixels.to(torch.float32) / 255
    return values.sub_(_channels(mean, values)).div_(_channels(std, values))


def _channels(values: Triple, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def _bytes(item: Any, place: int) -> NDArray[np.uint8]:
    """An array or tensor as uint8 [H, W, 3]."""
    array = np.asarray(item)
    if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3:
        raise BadFile(f"item {place} is no picture: an array {list(array.shape)}", hint="expected [H, W, 3]")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        what = f"item {place} is {array.dtype} and not in [0, 1]"
        raise BadFile(what, hint="expected uint8, or floats in [0, 1]")
    rounded: NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
    return rounded


def _sides(picture: NDArray[np.uint8]) -> str:
    return f"{picture.shape[0]}x{picture.shape[1]}"
