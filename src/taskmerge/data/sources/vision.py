"""torchvision's data sets of classified pictures by name: those on disk, nothing is downloaded."""

import inspect
from pathlib import Path
from typing import Any

from taskmerge.data.sources.contract import ItemSource, state_of
from taskmerge.data.sources.decode import as_rgb, broken
from taskmerge.errors import BadFile, TaskmergeError, UsageError, unknown_name
from taskmerge.specs.suite import Split

SETS = (
    "CIFAR10", "CIFAR100", "CLEVRClassification", "Caltech101", "Caltech256", "Country211", "DTD", "EMNIST", "EuroSAT",
    "FER2013", "FGVCAircraft", "FashionMNIST", "Flowers102", "Food101", "GTSRB", "ImageFolder", "ImageNet",
    "Imagenette", "KMNIST", "MNIST", "OxfordIIITPet", "PCAM", "Places365", "QMNIST", "RenderedSST2", "SEMEION", "STL10",
    "SUN397", "SVHN", "StanfordCars", "USPS",
)  # fmt: skip
"""Those whose targets are class numbers, and that need no more than a folder and a split."""

GONE = ("StanfordCars",)
"""torchvision still reads them and cannot download them any more."""

LABEL_FIELDS = ("targets", "labels", "_labels", "y")
NO_CLASS = "N/A"
"""The first class of EMNIST's letters, which no picture has: their labels count from 1."""


def open_torchvision(root: Path, split: Split, name: str, labelled: bool) -> ItemSource:
    """The data set `split.dataset` below `root`, in torchvision's own layout.

    Its split is `split.name`, else `name`; `configuration` is the `split` of sets that also have train and test
    (EMNIST's `letters`).
    """
    found = _built(root, split, name)
    classes = _classes(found)
    first = int(classes[:1] == (NO_CLASS,))
    return ItemSource(
        where=f"{root}: {split.dataset}",
        identity=state_of(root),
        length=len(found),
        read=iter,
        decode=lambda index: _picture(found, index),
        place=lambda index: f"{root}: {split.dataset} item {index}",
        labels=(lambda indices: _labels(found, indices, first)) if labelled else None,
        class_names=classes[first:] if labelled and classes else None,
        pictures=True,
    )


def _built(root: Path, split: Split, name: str) -> Any:
    import torchvision.datasets as known

    place, dataset = split.place or str(root), split.dataset or ""
    sets = [one for one in SETS if hasattr(known, one)]
    if dataset not in sets:
        raise unknown_name("torchvision data set", dataset, sets, where=place)
    maker = getattr(known, dataset)
    options = _options(maker, split, name, place)
    try:
        return maker(str(root), **options)
    except Exception as error:  # whatever its many readers raise
        if str(error).startswith("Unknown value"):  # torchvision names those it knows
            key = "configuration" if split.configuration is not None else "split"
            raise UsageError(str(error).splitlines()[0], where=place, hint=f"choose with `{key}: NAME`") from None
        raise _absent(error, root, dataset, options) from None


def _absent(error: Exception, root: Path, dataset: str, options: dict[str, Any]) -> TaskmergeError:
    """What torchvision cannot read, with the command that downloads it where there is one."""
    hint = f"put its files there as torchvision's documentation of {dataset} says"
    if "download" in options and dataset not in GONE:
        said = "".join(f", {key}={value!r}" for key, value in options.items() if key != "download")
        call = f"torchvision.datasets.{dataset}({str(root)!r}{said}, download=True)"
        hint = f'python -c "import torchvision; {call}"'
    lines = str(error).strip().splitlines() or [type(error).__name__]
    wrong = "is not there" if isinstance(error, RuntimeError | FileNotFoundError) else "cannot be read"
    return BadFile(f"torchvision's {dataset} {wrong}: {lines[0]}", where=str(root), hint=hint)


def _options(maker: Any, split: Split, name: str, place: str) -> dict[str, Any]:
    """What chooses the split: `train=`, `split=`, or both, whichever the data set takes."""
    takes = _parameters(maker)
    wanted = split.name or name
    options: dict[str, Any] = {"download": False} if "download" in takes else {}
    several = {"train", "split"} <= takes
    if several and split.configuration is None:
        what, known = f"torchvision's {maker.__name__} has several sets", ", ".join(getattr(maker, "splits", ()))
        raise UsageError(what, where=place, hint=f"choose with `configuration: NAME`: {known}")
    if split.configuration is not None and not several:
        what = f"torchvision's {maker.__name__} has no configurations"
        raise UsageError(what, where=place, hint="leave `configuration` out")
    if "train" in takes:
        if wanted not in ("train", "test"):
            raise unknown_name("split", wanted, ["train", "test"], where=place)
        options |= {"split": split.configuration} if several else {}
        options["train"] = wanted == "train"
    elif "split" in takes:
        options["split"] = wanted
    elif split.name is not None:
        raise UsageError(f"torchvision's {maker.__name__} has no splits", where=place, hint="leave `split` out")
    return options


def _parameters(maker: type) -> set[str]:
    """What a constructor takes, and what it hands on to the class that it comes from."""
    takes: set[str] = set()
    for one in maker.__mro__:
        if "__init__" in vars(one):
            found = inspect.signature(vars(one)["__init__"]).parameters.values()
            takes |= {parameter.name for parameter in found}
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in found):
                break
    return takes


def _classes(found: Any) -> tuple[str, ...]:
    """Class names by number; of several names (ImageNet's) the first."""
    names = getattr(found, "classes", None) or ()
    return tuple(str(name if isinstance(name, str) else name[0]) for name in names)


def _picture(found: Any, index: int) -> Any:
    try:
        return as_rgb(found[index][0])
    except Exception as error:
        return broken(error)


def _labels(found: Any, indices: Any, first: int) -> list[Any]:
    """Class numbers, less `first`, from where torchvision keeps them; only sets that keep none are decoded for them."""
    values = next((one for one in (_kept(found, field) for field in LABEL_FIELDS) if one is not None), None)
    samples = getattr(found, "_samples", None)
    if values is not None:
        labels = [values[index] for index in indices]
    elif samples is not None and len(samples) == len(found):
        labels = [samples[index][1] for index in indices]
    else:
        labels = [found[index][1] for index in indices]
    return [label if label is None else int(label) - first for label in labels]  # None: withheld


def _kept(found: Any, field: str) -> Any:
    """The field, if it holds one number an item (QMNIST's targets are rows of eight)."""
    values = getattr(found, field, None)
    whole = values is not None and len(values) == len(found) and getattr(values, "ndim", 1) == 1
    return values if whole else None
