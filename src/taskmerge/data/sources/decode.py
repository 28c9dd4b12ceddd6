"""Stored items as raw items: encoded pictures as RGB, arrays as uint8 [H, W, 3], texts and pairs as they are."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from taskmerge.data.sources.contract import Broken
from taskmerge.data.sources.limits import LARGEST_PICTURE
from taskmerge.documents import open_regular
from taskmerge.errors import TaskmergeError

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what it warns of is refused here


def decode_picture(stored: Path | bytes, *, upright: bool = False) -> Image.Image | Broken:
    """A picture file or its bytes as RGB. `upright` turns it as its EXIF orientation says (as `datasets` does,
    and torchvision's ImageFolder does not)."""
    try:
        with _opened(stored) as picture:
            return as_rgb(ImageOps.exif_transpose(picture) if upright else picture)
    except Exception as error:
        return broken(error)


def broken(error: Exception) -> Broken:
    """What is wrong with a picture that a decoder gave up on, whatever it raised."""
    reason = error.what if isinstance(error, TaskmergeError) else str(error).split(" <")[0]
    return Broken("no picture in a known format" if "cannot identify" in reason else reason or type(error).__name__)


def check_pixels(picture: Image.Image) -> None:
    """Raises ValueError for a picture of more pixels than one may have, before they are decoded."""
    width, height = picture.size
    if width * height > LARGEST_PICTURE:
        raise ValueError(f"{width:,} x {height:,} pixels are more than the {LARGEST_PICTURE:,} that a picture may have")


@contextmanager
def _opened(stored: Path | bytes) -> Iterator[Image.Image]:
    """A picture by its header, from a regular file or from bytes."""
    with (
        open(open_regular(stored), "rb") if isinstance(stored, Path) else io.BytesIO(stored) as stream,
        Image.open(stream) as picture,
    ):
        check_pixels(picture)
        yield picture


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture in three channels; transparency is dropped, not blended. Raises ValueError for one too large."""
    check_pixels(picture)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # the same colours as directly, without Pillow's warning
    return picture.convert("RGB")


def decode_array(array: np.ndarray[Any, Any]) -> Any:
    """One item of an array: a uint8 picture [H, W, 3], or a text. Floats in [0, 1] are rounded to 8 bits."""
    if array.dtype.kind == "U":
        return str(array)
    if array.ndim not in (2, 3) or array.size == 0:
        return Broken(f"an array of shape {list(array.shape)} is no picture")
    if array.dtype != np.uint8:
        values, what = (array * 255.0, "floats in [0, 1]") if array.dtype.kind == "f" else (array, "0 to 255")
        if array.dtype.kind not in "fiu" or not (values.min() > -0.5 and values.max() < 255.5):
            return Broken(f"a picture of {array.dtype} from {array.min()} to {array.max()}, not {what}")
        array = np.rint(values).astype(np.uint8)
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
        try:
            return as_rgb(value)
        except Exception as error:
            return broken(error)
    if isinstance(value, bytes | Path):
        return decode_picture(value, upright=True)
    if isinstance(value, np.ndarray):
        return decode_array(value)
    return value if isinstance(value, str) else Broken(f"{_described(value)} is neither a text nor a picture")


def _described(value: object) -> str:
    shown = repr(value)
    return "an empty value" if value is None else f"`{shown if len(shown) < 40 else shown[:37] + '...'}`"


def decode_stored(value: Any) -> np.ndarray[Any, Any] | Broken:
    """A label map as it is stored: an array, nested lists, or an encoded picture whose values are the labels."""
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value["bytes"] if value.get("bytes") is not None else Path(value.get("path") or "")
    try:
        if not isinstance(value, bytes | Path):
            return np.asarray(value)
        with _opened(value) as picture:
            return np.asarray(picture)
    except Exception as error:
        return broken(error)
