"""Pictures in one folder a class, as torchvision's ImageFolder reads them."""

import os
from pathlib import Path

from taskmerge.data.sources.contract import ItemSource, existing, state_of
from taskmerge.data.sources.decode import decode_picture
from taskmerge.data.sources.limits import files_below
from taskmerge.errors import BadFile
from taskmerge.specs.suite import Split

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def open_folder(path: Path, split: Split, labelled: bool) -> ItemSource:
    """Every picture below the class folders, sorted by path; unlabelled pictures may also lie in the folder itself."""
    if not os.path.isdir(existing(path, "folder")):
        raise BadFile("is a file, not a folder of class folders", where=str(path), hint="name the folder")
    names = sorted(one.name for one in os.scandir(path) if one.is_dir() and not one.name.startswith("."))
    if labelled and not names:
        raise BadFile("holds no class folders", where=str(path), hint="put each class's pictures in its own folder")
    files = [(file, number) for number, name in enumerate(names) for file in _pictures(path / name)]
    if not labelled:
        files += [(file, -1) for file in sorted(path.iterdir()) if _is_picture(file)]
    return ItemSource(
        where=str(path),
        identity=state_of(path),
        length=len(files),
        read=lambda indices: (files[index][0] for index in indices),
        decode=decode_picture,
        place=lambda index: str(files[index][0]),
        labels=(lambda indices: [files[index][1] for index in indices]) if labelled else None,
        class_names=tuple(names) if labelled else None,
        pictures=True,
    )


def _pictures(folder: Path) -> list[Path]:
    return [file for file in files_below(folder) if _is_picture(file)]


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".")
