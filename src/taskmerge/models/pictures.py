"""Pictures as uint8 squares, made once, and the values that a module makes of them on its device, in its dtype."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from taskmerge.errors import BadFile, Mismatch
from taskmerge.types import Inputs

Triple = tuple[float, float, float]
Geometry = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class PicturePrepare:
    """PIL pictures or uint8 arrays [H, W, 3] -> `pixels` uint8 [N, 3, H, W].

    `geometry` resizes and crops to `size` (height, width); a picture of that size is left as it is. With `size` None
    pictures keep their own, which must be the same for all and a multiple of `step`. `where` is for messages.
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
        values = pixels.numpy()
        for place, item in enumerate(raw):
            picture = first if place == 0 else self._one(item, place)
            if picture.shape[:2] != size:
                raise self._of_another_size(picture, place, size)
            values[place] = picture.transpose(2, 0, 1)
        return {"pixels": pixels}

    def _one(self, item: Any, place: int) -> NDArray[np.uint8]:
        """One picture as uint8 [H, W, 3], resized and cropped if it has to be."""
        if isinstance(item, str) or (isinstance(item, list | tuple) and item and isinstance(item[0], str)):
            raise Mismatch(
                "texts for a backbone that sees pictures", where=self.where or None, hint="check `backbone` and data"
            )
        picture = item if isinstance(item, Image.Image) else _checked(item, place)
        if isinstance(picture, Image.Image):
            if self.geometry is not None and picture.size[::-1] != self.size:
                picture = self.geometry(picture)
            return np.array(picture.convert("RGB"))
        if self.geometry is None or picture.shape[:2] == self.size:
            return picture
        return np.array(self.geometry(Image.fromarray(picture)))

    def _of_another_size(self, picture: NDArray[np.uint8], place: int, size: tuple[int, int]) -> Mismatch:
        what, hint = f"picture {place} is {_sides(picture)}, the first one {size[0]}x{size[1]}", "resize them alike"
        if self.size is not None:
            what = f"pictures of {_sides(picture)}, and `preprocess` says {size[0]}x{size[1]}"
            hint = "dense tasks keep their pictures as they are: bring them to that size, or leave `preprocess` out"
        return Mismatch(what, where=self.where or None, hint=hint)

    def _own_size(self, picture: NDArray[np.uint8]) -> tuple[int, int]:
        height, width = picture.shape[:2]
        if height % self.step or width % self.step:
            what = f"pictures are {_sides(picture)}, sides must be multiples of {self.step}"
            raise Mismatch(what, where=self.where or None, hint="resize pictures and labels alike")
        return height, width


def normalised(pixels: Tensor, mean: Triple, std: Triple, module: nn.Module) -> Tensor:
    """uint8 [N, 3, H, W] -> (pixels / 255 - mean) / std, in this order of operations, for a module and in its dtype.

    Computed in float32, or in float64 where the module is.
    """
    dtype = next(module.parameters()).dtype
    values = pixels.to(torch.promote_types(dtype, torch.float32)) / 255
    return values.sub_(_channels(mean, values)).div_(_channels(std, values)).to(dtype)


def _channels(values: Triple, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def _checked(item: Any, place: int) -> NDArray[np.uint8]:
    """An array that is a picture: uint8 [H, W, 3]."""
    array = np.asarray(item)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise BadFile(f"item {place} is no picture: {array.dtype} {list(array.shape)}", hint="expected uint8 [H, W, 3]")
    return array


def _sides(picture: NDArray[np.uint8]) -> str:
    return f"{picture.shape[0]}x{picture.shape[1]}"
