"""torchvision's data sets by name: those on disk, nothing is downloaded."""

import inspect
from pathlib import Path
from typing import Any

from taskmerge.data.sources.contract import Broken, Source, state_of
from taskmerge.data.sources.decode import as_rgb
from taskmerge.errors import BadFile, UsageError, unknown_name
from taskmerge.specs.suite import Split

LABEL_FIELDS = ("targets", "labels", "_labels")


def open_torchvision(root: Path, split: Split, name: str, labelled: bool) -> Source:
    """The data set `split.dataset` below `root`, in torchvision's own layout.

    Its split is `split.name`, else `name`; `configuration` is the `split` of sets that also have train and test
    (EMNIST's `letters`).
    """
    found = _built(root, split, name)
    names = getattr(found, "classes", None)
    return Source(
        where=f"{root}: {split.dataset}",
        identity=(str(split.dataset), *state_of(root)),
        length=len(found),
        read=iter,
        decode=lambda index: _picture(found, index),
        place=lambda index: f"{root}: {split.dataset} item {index}",
        labels=(lambda indices: _labels(found, indices)) if labelled else None,
        class_names=tuple(map(str, names)) if labelled and names else None,
        pictures=True,
    )


def _built(root: Path, split: Split, name: str) -> Any:
    import torchvision.datasets as known

    place = split.place or str(root)
    dataset = split.dataset or ""
    sets = [one for one in known.__all__ if "root" in inspect.signature(getattr(known, one).__init__).parameters]
    if dataset not in sets:
        raise unknown_name("torchvision data set", dataset, sets, where=place)
    maker = getattr(known, dataset)
    options = _options(maker, split, name, place)
    try:
        return maker(str(root), **options)
    except ValueError as error:  # torchvision names the splits it knows
        raise UsageError(str(error).splitlines()[0], where=place, hint="choose with `split: NAME`") from None
    except (RuntimeError, OSError) as error:
        said = "".join(f", {key}={value!r}" for key, value in options.items() if key != "download")
        call = f"torchvision.datasets.{dataset}({str(root)!r}{said}, download=True)"
        what = f"torchvision's {dataset} is not there: {str(error).splitlines()[0]}"
        hint = f'python -c "import torchvision; {call}"'
        raise BadFile(what, where=str(root), hint=hint) from None


def _options(maker: Any, split: Split, name: str, place: str) -> dict[str, Any]:
    """What chooses the split: `train=`, `split=`, or both, whichever the data set takes."""
    takes = inspect.signature(maker.__init__).parameters
    wanted = split.name or name
    options: dict[str, Any] = {"download": False} if "download" in takes else {}
    if "train" in takes:
        if wanted not in ("train", "test"):
            raise unknown_name("split", wanted, ["train", "test"], where=place)
        options["train"] = wanted == "train"
        if "split" in takes:
            options["split"] = split.configuration
    elif "split" in takes:
        options["split"] = wanted
    elif split.name is not None:
        raise UsageError(f"torchvision's {maker.__name__} has no splits", where=place, hint="leave `split` out")
    return options


def _picture(found: Any, index: int) -> Any:
    try:
        return as_rgb(found[index][0])
    except (OSError, ValueError, SyntaxError) as error:
        return Broken(str(error))


def _labels(found: Any, indices: Any) -> list[Any]:
    """Labels from where torchvision keeps them; only sets that keep none are decoded for them."""
    for field in LABEL_FIELDS:
        values = getattr(found, field, None)
        if values is not None and len(values) == len(found):
            return [int(values[index]) for index in indices]
    samples = getattr(found, "_samples", None)
    if samples is not None and len(samples) == len(found):
        return [int(samples[index][1]) for index in indices]
    return [int(found[index][1]) for index in indices]
