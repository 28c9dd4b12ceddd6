"""Stored items as raw items: encoded pictures as RGB, arrays as uint8 [H, W, 3], texts and pairs as they are."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from taskmerge.data.sources.contract import Broken


def decode_picture(stored: Path | bytes, *, upright: bool = False) -> Image.Image | Broken:
    """A picture file or its bytes as RGB. `upright` turns it as its EXIF orientation says (as `datasets` does,
    and torchvision's ImageFolder does not)."""
    try:
        with Image.open(stored if isinstance(stored, Path) else io.BytesIO(stored)) as picture:
            return as_rgb(ImageOps.exif_transpose(picture) if upright else picture)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).split(" <")[0]
        return Broken(reason if "cannot identify" not in reason else "no picture in a known format")


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture in three channels; transparency is dropped, not blended."""
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # the same colours as directly, without Pillow's warning
    return picture.convert("RGB")


def decode_array(array: np.ndarray[Any, Any]) -> Any:
    """One item of an array: a uint8 picture [H, W, 3], or a text."""
    if array.dtype.kind == "U":
        return str(array)
    if array.ndim == 3 and array.shape[-1] not in (1, 3) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return np.repeat(array[..., None], 3, axis=-1) if array.ndim == 2 else array


def decode_row(values: Sequence[Any]) -> Any:
    """The value of one column, or of two: a picture, a text, or a pair of texts."""
    if len(values) == 2:
        strangers = [value for value in values if not isinstance(value, str)]
        return Broken(f"{_described(strangers[0])} is no text") if strangers else tuple(values)
    (value,) = values
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():  # how `datasets` stores a picture
        value = value["bytes"] if value.get("bytes") is not None else Path(value.get("path") or "")
    if isinstance(value, Image.Image):
        return as_rgb(value)
    if isinstance(value, bytes | Path):
        return decode_picture(value, upright=True)
    return value if isinstance(value, str) else Broken(f"{_described(value)} is neither a text nor a picture")


def _described(value: object) -> str:
    shown = repr(value)
    return "an empty value" if value is None else f"`{shown if len(shown) < 40 else shown[:37] + '...'}`"


def decode_stored(value: Any) -> np.ndarray[Any, Any] | Broken:
    """A label map as it is stored: an array, nested lists, or an encoded picture whose values are the labels."""
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value["bytes"] if value.get("bytes") is not None else Path(value.get("path") or "")
    if not isinstance(value, bytes | Path):
        return np.asarray(value)
    try:
        with Image.open(value if isinstance(value, Path) else io.BytesIO(value)) as picture:
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        return Broken(str(error))
