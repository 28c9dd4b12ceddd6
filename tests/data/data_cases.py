"""Small splits in every form, and the plainest preprocessing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from taskmerge.data.datasets import load_labelled
from taskmerge.data.items import Items, Labelled
from taskmerge.data.loading import LoadOptions
from taskmerge.data.streams import load_unlabelled
from taskmerge.specs.suite import Location, Split, Task, TaskKind
from taskmerge.types import Inputs


def resolve(location: Location) -> Path:
    assert isinstance(location, Path)
    return location


@dataclass
class Squares:
    """Pictures reduced to squares; counts how many it has seen."""

    size: int = 16
    seen: list[int] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"squares {self.size}"

    def __call__(self, raw: Sequence[Any]) -> Inputs:
        self.seen.append(len(raw))
        pictures = [one if isinstance(one, Image.Image) else Image.fromarray(one) for one in raw]
        assert all(one.mode == "RGB" for one in pictures)
        arrays = [np.array(one.resize((self.size, self.size), Image.Resampling.NEAREST)) for one in pictures]
        return {"pixels": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()}


@dataclass
class Bytes:
    """Texts, or pairs of texts, as bytes padded to the longest."""

    key: str = "bytes"

    def __call__(self, raw: Sequence[Any]) -> Inputs:
        texts = [("|".join(one) if isinstance(one, tuple) else one).encode() for one in raw]
        ids = torch.zeros((len(texts), max(map(len, texts))), dtype=torch.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(list(text))
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def texts_of(items: Items) -> list[str]:
    """What `Bytes` was given."""
    return [bytes(row[row > 0].tolist()).decode() for row in items.inputs["input_ids"]]


def task(
    split: Split, *, kind: TaskKind = "classification", classes: Sequence[str] = ("no", "yes", "so"), **more: Split
) -> Task:
    return Task("birds", None, Path("head"), kind, "accuracy", tuple(classes), (), {"test": split, **more})


def load(split: Split, prepare: Any = None, **options: Any) -> Labelled:
    """The items of a split with their labels; `kind` and `classes` are the task's."""
    about = {name: options.pop(name) for name in ("kind", "classes") if name in options}
    return load_labelled(task(split, **about), "test", prepare or Squares(), LoadOptions(resolve=resolve, **options))


def load_plain(split: Split, prepare: Any = None, **options: Any) -> Items:
    """The items of a split without labels."""
    about = {name: options.pop(name) for name in ("kind", "classes") if name in options}
    return load_unlabelled(task(split, **about), "test", prepare or Squares(), LoadOptions(resolve=resolve, **options))


def pictures(count: int, size: int = 16, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth pictures [N, H, W, 3], all different."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.array(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in small])


def npz(path: Path, *, save: Callable[..., None] = np.savez, **arrays: NDArray[Any]) -> Split:
    save(path, **arrays)
    return Split("npz", path, ("x",), "y" if "y" in arrays else None, place="suite.yaml:7:3")


def class_folders(root: Path, names: Sequence[str], each: int = 2, ending: str = "png", step: int = 1) -> Split:
    """One folder a class, `each` pictures in it, as red as `step` times the class's number in `names`."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for place in range(each):
            Image.new("RGB", (20, 18), (number * step, place, 0)).save(root / name / f"{place}.{ending}")
    return Split("images", root, (), "label", place="suite.yaml:9:3")
